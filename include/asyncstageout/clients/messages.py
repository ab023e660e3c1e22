"""FTS's monitoring messages (STOMP): which files are final, as a hint that comes seconds before a poll.

The broker promises nothing that is relied on: messages may be lost, late, doubled, foreign or nonsense. Field
names and when a message is final: FTS 3.13 (``transfer.fts_monitoring_complete`` and ``_state``).
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final
from urllib.parse import unquote, urlsplit
from uuid import UUID

from asyncstageout.core.fts import UNREADABLE
from asyncstageout.core.states import FTS_FILE_FINAL

logger = logging.getLogger(__name__)

COMPLETE: Final = "/topic/transfer.fts_monitoring_complete"
STATE: Final = "/topic/transfer.fts_monitoring_state"

MOST_KEPT = 50_000
"""Notices that nobody takes; older ones fall out, and the next poll finds what they said."""
IDLE_S = 600.0
"""A feed from which nobody takes ends by itself: its watch has moved to another triggerer."""
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
CONNECT_S = 10.0
HEARTBEAT_MS = 10_000
SCHEMES = {"stomp": 61613, "stomp+ssl": 61614}


@dataclass(frozen=True, slots=True)
class FileNotice:
    """A file that is final, says a message."""

    job_id: UUID
    file_state: str
    """FINISHED, FAILED or CANCELED."""
    job_state: str
    transfer_id: int | None
    """Ours, when the message holds our metadata."""
    file_id: int | None
    said_at: datetime | None


def read_message(topic: str, body: str | bytes) -> FileNotice | None:
    """Return what a message says of a file that is final; None for any other, and for nonsense."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    read = {COMPLETE: _read_complete, STATE: _read_state}.get(topic)
    try:
        # FTS ends every message with one byte more (0x04; newer ones: a space).
        row = json.loads(text.rstrip("\x04\x00 \r\n"))
        return read(row) if read else None
    except (*UNREADABLE, OverflowError, OSError, RecursionError) as error:
        logger.debug("a message on %s cannot be read: %r", topic, error)
        return None


def _read_complete(row: Mapping[str, Any]) -> FileNotice | None:
    """One try of one file ended."""
    if row["job_multihop"] or row["job_m_replica"]:
        return None  # another hop or replica may follow
    if row["t_final_transfer_state"] == "Ok":
        return None if row["is_archiving"] else _notice(row, "FINISHED", row["tr_timestamp_complete"])
    if row["is_recoverable"] and row["retry"] < row["retry_max"]:
        return None  # FTS tries again
    return _notice(row, "FAILED", row["tr_timestamp_complete"])


def _read_state(row: Mapping[str, Any]) -> FileNotice | None:
    return _notice(row, row["file_state"], row["timestamp"]) if row["file_state"] in FTS_FILE_FINAL else None


def _notice(row: Mapping[str, Any], file_state: str, at_ms: float) -> FileNotice:
    ours = row["file_metadata"]
    number = ours.get("id") if isinstance(ours, dict) else None
    return FileNotice(
        job_id=UUID(row["job_id"]),
        file_state=file_state,
        job_state=str(row["job_state"]).encode("ascii", "replace").decode().replace("\0", ""),
        transfer_id=_number(number),
        file_id=_number(row["file_id"]),
        said_at=datetime.fromtimestamp(at_ms / 1000, UTC) if at_ms > 0 else None,
    )


def _number(value: object) -> int | None:
    """Return what the catalogue can hold as a number."""
    return value if type(value) is int and 0 < value < 2**63 else None


@dataclass(frozen=True, slots=True)
class Broker:
    """Where messages come from, and as whom they are read."""

    host: str
    port: int
    tls: bool = True
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    @classmethod
    def of(cls, url: str, **options: str | None) -> Broker:
        """Read ``stomp+ssl://user@host:port`` (``stomp://``: without TLS).

        Raises:
            ValueError: it is not such a URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or not parts.hostname:
            raise ValueError(f"not stomp+ssl://user@host:port but {parts.scheme}://{parts.hostname}")
        user = unquote(parts.username) if parts.username else None
        port = parts.port or SCHEMES[parts.scheme]
        return cls(parts.hostname, port, parts.scheme == "stomp+ssl", user, **options)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def connection(self) -> Any:
        """Return a connection of stomp.py that is not connected yet.

        Raises:
            ModuleNotFoundError: stomp.py is not installed (``asyncstageout[messages]``).
        """
        from stomp.connect import StompConnection12  # noqa: PLC0415 - an optional library

        where = [(self.host, self.port)]
        conn = StompConnection12(
            where,
            reconnect_attempts_max=1,
            timeout=CONNECT_S,
            heartbeats=(HEARTBEAT_MS, HEARTBEAT_MS),
            try_loopback_connect=False,
        )
        if self.tls:
            conn.set_ssl(where, ca_certs=self.ca_file, cert_file=self.cert_file, key_file=self.key_file)
        return conn


class MessageFeed:
    """Listens to a broker in a thread of its own and keeps what it heard until somebody takes it.

    A broker that is away is only logged, and tried again with growing waits.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        idle_s: float = IDLE_S,
        first_wait_s: float = FIRST_WAIT_S,
        connection: Callable[[], Any] | None = None,
    ) -> None:
        self.broker = broker
        self._new_connection = connection or broker.connection
        self._idle_s = idle_s
        self._first_wait_s = first_wait_s
        self._notices: deque[FileNotice] = deque(maxlen=MOST_KEPT)
        self._arrived = threading.Event()
        self._subscribed = threading.Event()
        self._lost = threading.Event()
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._taken_at_s = monotonic()
        self._thread = threading.Thread(target=self._keep, name=f"messages of {broker}", daemon=True)
        self._thread.start()

    @property
    def is_open(self) -> bool:
        return self._thread.is_alive() and not self._closing.is_set()

    def wait_subscribed(self, timeout_s: float) -> bool:
        """Wait until the broker listens to us; return whether it does."""
        return self._subscribed.wait(timeout_s)

    def wait_lost(self, timeout_s: float) -> bool:
        """Wait until the broker does not listen to us any more; return whether that is so."""
        return self._lost.wait(timeout_s)

    def wait(self, timeout_s: float) -> bool:
        """Wait for a notice that nobody has taken; return whether there is one."""
        return self._arrived.wait(timeout_s)

    def take(self) -> list[FileNotice]:
        """Return what was heard since the last time."""
        self._taken_at_s = monotonic()
        self._arrived.clear()
        taken = []
        while self._notices:
            taken.append(self._notices.popleft())
        return taken

    def close(self) -> None:
        """Hang up."""
        self._closing.set()
        self._changed.set()
        self._thread.join(2 * CONNECT_S)

    # -- the thread that keeps the connection ------------------------------------------------------

    def _keep(self) -> None:
        wait_s = self._first_wait_s
        while not self._closing.is_set():
            heard, problem = self._listen()
            if self._closing.is_set():
                return
            wait_s = self._first_wait_s if heard else min(2 * wait_s, LONGEST_WAIT_S)
            logger.warning("no messages from %s: %s; polling goes on, next try in %.0f s",
                           self.broker, problem, wait_s)  # fmt: skip
            self._closing.wait(wait_s)

    def _listen(self) -> tuple[bool, str]:
        """Listen until the connection breaks; return whether there was one, and what ended it."""
        from stomp.exception import StompException  # noqa: PLC0415 - an optional library

        self._changed.clear()
        conn = self._new_connection()
        listener = _Listener(self, conn)
        conn.set_listener("", listener)
        try:
            conn.connect(self.broker.user, self.broker.password)
            if self._changed.wait(CONNECT_S) and self._subscribed.is_set():
                logger.info("listening to the messages of %s", self.broker)
                self._until_broken(listener)
        except (StompException, OSError) as error:
            return False, f"{type(error).__name__} {error}".strip()
        finally:
            heard = self._subscribed.is_set()
            self._subscribed.clear()
            self._lost.set()
            conn.transport.disconnect_socket()
        return heard, listener.problem

    def _until_broken(self, listener: _Listener) -> None:
        while not (listener.is_broken or self._closing.is_set()):
            self._changed.clear()
            if listener.is_broken or self._closing.is_set():
                return
            self._changed.wait(self._idle_s)
            if monotonic() - self._taken_at_s >= self._idle_s:
                self._closing.set()

    # -- what stomp.py's thread calls --------------------------------------------------------------

    def on_subscribed(self) -> None:
        self._lost.clear()
        self._subscribed.set()
        self._changed.set()

    def on_broken(self) -> None:
        self._changed.set()

    def on_message(self, topic: str, body: str | bytes) -> None:
        """Keep what a message says, if it says something."""
        if notice := read_message(topic, body):
            self._notices.append(notice)
            self._arrived.set()


class _Listener:
    """stomp.py's callbacks; it asks for methods by name."""

    def __init__(self, feed: MessageFeed, conn: Any) -> None:
        self._feed = feed
        self._conn = conn
        self.is_broken = False
        self.problem = "the broker does not answer"

    def on_connected(self, _frame: Any) -> None:
        for number, topic in enumerate((COMPLETE, STATE)):
            self._conn.subscribe(topic, id=number, ack="auto")
        self._feed.on_subscribed()

    def on_message(self, frame: Any) -> None:
        self._feed.on_message(frame.headers.get("destination", ""), frame.body)

    def on_error(self, frame: Any) -> None:
        self._break(str(frame.headers.get("message") or "the broker refuses")[:200])

    def on_heartbeat_timeout(self) -> None:
        self._break("the broker fell silent")

    def on_disconnected(self) -> None:
        self._break("the connection broke" if not self.is_broken else self.problem)

    def _break(self, problem: str) -> None:
        self.is_broken, self.problem = True, problem
        self._feed.on_broken()
