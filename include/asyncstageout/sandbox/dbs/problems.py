"""Refusals, in the words of dbs2go v00.06 (``dbs/errors.go``, ``web/handlers.go``)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, Self

GENERIC, DATABASE, TRANSACTION, QUERY = 100, 101, 102, 103
SESSION, COMMIT, LOAD, GET_ID, INSERT = 105, 106, 108, 109, 110
VALIDATE, PATTERN, DECODE, CONTENT_TYPE, PARAMETERS = 113, 114, 115, 117, 118
NOT_IMPLEMENTED, READER, UNMARSHAL, HTTP_REQUEST, MIGRATION = 119, 120, 122, 124, 125
INVALID_REQUEST, BLOCK_EXISTS, FILE_TYPE_MISSING, DATASET_PARENT_MISSING = 127, 128, 129, 131
PROCESSED_DATASET_MISSING, PRIMARY_TYPE_MISSING, PRIMARY_DATASET_MISSING = 132, 133, 134
PROCESSING_ERA_MISSING, ACQUISITION_ERA_MISSING, DATA_TIER_MISSING = 135, 136, 137
PHYSICS_GROUP_MISSING, ACCESS_TYPE_MISSING, DATASET_MISSING = 138, 139, 140

EXPLANATIONS: Final = {
    GENERIC: "Generic DBS error",
    DATABASE: "DBS DB error",
    TRANSACTION: "DBS DB transaction error",
    QUERY: "DBS DB query error, e.g. mailformed SQL statement",
    SESSION: "DBS DB session error",
    COMMIT: "DBS DB transaction commit error",
    LOAD: "DBS file load error, e.g. fail to load DB template",
    GET_ID: "DBS DB ID error for provided entity, e.g. there is no record in DB for provided value",
    INSERT: "DBS DB insert record error",
    VALIDATE: "DBS validation error, e.g. input parameter does not match lexicon rules",
    PATTERN: "DBS validation error when wrong pattern is provided",
    DECODE: "DBS decode record failure, e.g. mailformed JSON",
    CONTENT_TYPE: "Wrong Content-Type HTTP header in HTTP request",
    PARAMETERS: "DBS invalid parameter for the DBS API",
    NOT_IMPLEMENTED: "DBS Not implemented API error",
    READER: "DBS reader I/O error, e.g. unable to read HTTP POST payload",
    UNMARSHAL: "DBS unable to parse JSON record",
    HTTP_REQUEST: "invalid HTTP request",
    MIGRATION: "DBS Migration error",
    INVALID_REQUEST: "Invalid HTTP request",
}
"""Of the codes from 128 on, v00.06 says "Not defined"."""

NIL = "nil"
INVALID_PARAMETER = "invalid parameter(s)"
CONCURRENCY = "concurrency error"
VALIDATION = "validation error"
NO_ROWS = "sql: no rows in result set"


class Problem(Exception):
    """An error of dbs2go. They nest: the reason of one is the whole text of the one inside.

    Attributes:
        status: of HTTP.
        before_gzip: it comes before the server looks whether the answer shall be compressed.
    """

    def __init__(
        self,
        reason: str,
        code: int,
        message: str,
        function: str,
        *,
        status: int = 400,
        before_gzip: bool = False,
    ) -> None:
        super().__init__(reason, code, message, function)
        self.reason, self.code, self.message, self.function = reason, code, message, function
        self.status = status
        self.before_gzip = before_gzip

    @property
    def text(self) -> str:
        nested = "nested " if "DBSError" in self.reason else ""
        return (
            f"DBSError Code:{self.code} Description:{EXPLANATIONS.get(self.code, 'Not defined')} "
            f"Function:{self.function} Message:{self.message} Error: {nested}{self.reason}"
        )

    def within(self, code: int, message: str, function: str) -> Self:
        """Return the error that has this one inside."""
        return type(self)(self.text, code, message, function)

    def body(self, request: dict[str, str]) -> list[dict[str, Any]]:
        """Return the JSON answer.

        Args:
            request: ``method``, ``path``, ``user_agent`` and ``remote_addr``.
        """
        now = datetime.now(UTC)
        return [
            {
                "error": {
                    "reason": self.reason,
                    "message": self.message,
                    "function": self.function,
                    "code": self.code,
                    "stacktrace": f"\ngoroutine 1 [running]:\n{self.function}(...)\n",
                },
                "http": {
                    "method": request["method"],
                    "code": self.status,
                    "timestamp": f"{now:%Y-%m-%d %H:%M:%S.%f}000 +0000 UTC m=+1.000000000",
                    "path": request["path"],
                    "user_agent": request["user_agent"],
                    "x_forwarded_host": "",
                    "x_forwarded_for": "",
                    "remote_addr": request["remote_addr"],
                },
                "exception": self.status,
                "type": "HTTPError",
                "message": self.text,
            }
        ]
