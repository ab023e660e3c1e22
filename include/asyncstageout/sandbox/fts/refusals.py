"""Refusals, in the words of FTS."""

from __future__ import annotations

from typing import Any

REASONS = {
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    419: "Authentication Timeout",
    500: "Internal Server Error",
}
INTERNAL_ERROR = (
    "The server encountered an internal error and was unable to complete your request. "
    "Either the server is overloaded or there is an error in the application."
)
NOT_FOUND = (
    "The requested URL was not found on the server. "
    "If you entered the URL manually please check your spelling and try again."
)
NOT_ALLOWED = "The method is not allowed for the requested URL."


class Refused(Exception):
    """A request that FTS answers with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    @property
    def body(self) -> dict[str, Any]:
        """The JSON answer."""
        return {"status": f"{self.status} {REASONS[self.status]}", "message": self.message}
