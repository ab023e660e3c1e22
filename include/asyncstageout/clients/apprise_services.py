"""A channel of alerts through Apprise, which speaks to over a hundred services: pagers, chats, telephones.

Apprise is an optional package (``asyncstageout[apprise]``).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from asyncstageout.clients.receivers import Failing
from asyncstageout.core.alert_texts import Links, html, title
from asyncstageout.core.alerts import Kind, Notice, Severity

if TYPE_CHECKING:
    from apprise import Apprise

_LOOKS = {Severity.NOTE: "info", Severity.WARNING: "warning", Severity.URGENT: "failure"}
"""Apprise's type of a message, which services show as a colour or a sign."""

JSON: TypeAlias = "str | int | float | bool | list[JSON] | dict[str, JSON] | None"


class AppriseUnusable(ValueError):
    """Apprise is not installed, or was given no service that may be used; no secret is in the text."""


class Service(NamedTuple):
    """One service of Apprise."""

    url: str
    """With its secrets."""
    tags: tuple[str, ...] = ()


def read_services(config: JSON) -> list[Service]:
    """Return the services of a connection, as Airflow's Apprise provider writes them down.

    Args:
        config: ``{"path": URL, "tag": TAGS}`` or a list of such, or that as text; TAGS is a text or a list.

    Raises:
        AppriseUnusable: it is something else, or there is none.
    """
    if isinstance(config, str):
        try:
            config = json.loads(config)
        except ValueError as error:
            raise AppriseUnusable(f"config is no JSON: {error}") from error
    rows = config if isinstance(config, list) else [config]
    services = [_service(row) for row in rows]
    if not services:
        raise AppriseUnusable("config names no service")
    return services


def _service(row: JSON) -> Service:
    path = row.get("path") if isinstance(row, dict) else None
    if not isinstance(row, dict) or not isinstance(path, str):
        raise AppriseUnusable('config must be {"path": URL} or a list of such')
    tags = row.get("tag") or ()
    named = (tags,) if isinstance(tags, str) else tags
    if not isinstance(named, list | tuple):
        raise AppriseUnusable("tag must be a text or a list of texts")
    return Service(path, tuple(str(tag) for tag in named))


class AppriseServices:
    """Services of Apprise, told all together.

    Args:
        tags: only services that have one of these are told; none: all.

    Raises:
        AppriseUnusable: see there.
    """

    def __init__(
        self, name: str, services: Iterable[Service], links: Links, *, tags: Sequence[str] = ()
    ) -> None:
        self._name, self._links, self._tags = name, links, list(tags)
        self._apprise = _opened(services)
        if not any(self._apprise.find(tag=self._tags or "all")):
            raise AppriseUnusable(f"no service has the tag {' or '.join(self._tags)}")

    def tell(self, notices: Sequence[Notice]) -> None:
        """Tell all services of all notices in one message.

        Raises:
            Failing: one of them did not take it (Apprise says which, and why, in the log only). The others
                have taken it, and will again.
        """
        from apprise import NotifyFormat, NotifyType  # noqa: PLC0415 - optional

        taken = self._apprise.notify(
            title=title(notices),
            body=html(notices, self._links),
            body_format=NotifyFormat.HTML,
            notify_type=NotifyType(look(notices)),
            tag=self._tags or "all",
        )
        if not taken:
            raise Failing(self._name, "telling Apprise's services", None, "the task's log says which and why")


def look(notices: Sequence[Notice]) -> str:
    """Return Apprise's type of message for notices: that of the gravest that is not over."""
    worst = max((one.severity for one in notices if one.kind is not Kind.OVER), default=None)
    return "success" if worst is None else _LOOKS[worst]


def _opened(services: Iterable[Service]) -> Apprise:
    try:
        from apprise import Apprise  # noqa: PLC0415 - optional
    except ImportError as error:
        raise AppriseUnusable(
            "Apprise is not installed here: pip install 'asyncstageout[apprise]'"
        ) from error
    opened = Apprise()
    for number, service in enumerate(services, 1):
        with _unheard():
            made = Apprise.instantiate(service.url, tag=list(service.tags))
        if made is None:
            raise AppriseUnusable(f"Apprise knows no service of the form of path {number}")
        if not made.verify_certificate:
            raise AppriseUnusable(f"path {number} says verify=no: whom it speaks to must be checked")
        opened.add(made)
    return opened


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep Apprise's log shut: it shows a URL that it does not understand, with its secrets (2.3.0)."""
    logger = logging.getLogger("apprise")

    def nothing(_record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)
