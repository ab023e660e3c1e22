"""HTTP as all clients speak it: verified, with timeouts, and patient where a request may be repeated.

Nothing comes from the environment: a ``.netrc`` or a proxy variable would make workers differ.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from importlib.metadata import version
from typing import Any, Protocol
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from tenacity import RetryCallState, Retrying, stop_after_attempt, stop_before_delay, wait_random_exponential
from urllib3 import HTTPConnectionPool, HTTPResponse, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import NewConnectionError

from asyncstageout.clients.errors import Answer, ServiceError, Transient
from asyncstageout.clients.tls import Revocation, Trust

logger = logging.getLogger(__name__)

CUT_OFF = "the answer was not complete when its time was over"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class Access:
    """Whom we trust, who we are, and where names lead.

    Attributes:
        ca: file or directory (hashed names) of certificate authorities; ``None`` takes those of ``certifi``.
        crl: whether revocation lists are looked at, see :class:`~asyncstageout.clients.tls.Trust`.
        cert_file: client certificate or proxy, PEM.
        key_file: its key; ``None`` when it is in ``cert_file``.
        bearer: returns the current token; asked for every request, so that it may be renewed.
        connect_to: host name -> ``ip:port``. Only the connection goes there: certificate, SNI and ``Host``
            stay those of the name (as curl's ``--connect-to``). ``*.example.org`` is every name below that.
    """

    ca: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    bearer: Callable[[], str] | None = field(default=None, repr=False)
    connect_to: Mapping[str, str] = field(default_factory=dict)
    crl: Revocation = ""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one call may take.

    Attributes:
        read_s: between two bytes of an answer.
        longest_wait_s: between two tries; caps what a server asks for with ``Retry-After`` too.
        deadline_s: for all tries together: no new one starts after it, and an answer that trickles in is cut
            off. Sending, and a body that the caller reads as a stream, may take longer.
    """

    connect_s: float = 10
    read_s: float = 60
    tries: int = 4
    first_wait_s: float = 0.5
    longest_wait_s: float = 20
    deadline_s: float = 90


def new_session(access: Access | None = None, *, pool_size: int = 10, servers: int = 16) -> requests.Session:
    """Return a session for one identity; a few threads may share it.

    Args:
        pool_size: connections kept per server, so about the number of threads.
        servers: to how many servers connections are kept.

    Raises:
        UnreadableCAs: whom to trust cannot be read.
    """
    access = access or Access()
    trust = Trust(access.ca, access.crl)
    trust.check()
    session = requests.Session()
    session.trust_env = False
    if access.cert_file:
        session.cert = (access.cert_file, access.key_file) if access.key_file else access.cert_file
    session.auth = Bearer(access.bearer) if access.bearer else None
    session.headers["User-Agent"] = f"asyncstageout/{version('asyncstageout')}"
    # A cookie would tie us to one machine behind an alias, and is shared state between threads.
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    adapter = _ConnectTo(access.connect_to, pool_size, servers, trust)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


class InsecureToken(ValueError):
    """A token would have left this machine in the clear."""


class Bearer(AuthBase):
    """Adds a token to a request, asked for when it goes out.

    Raises:
        InsecureToken: the request would leave this machine in the clear.
    """

    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        url = urlsplit(request.url or "")
        if url.scheme != "https" and url.hostname not in LOOPBACK:
            raise InsecureToken(f"no token is sent to {url.hostname} without TLS")
        request.headers["Authorization"] = f"Bearer {self._token()}"
        return request


class _Answer:
    """An answer that is waited for until ``ends_at_s``."""

    __slots__ = ("ends_at_s", "sock", "was_cut")

    def __init__(self, sock: socket.socket, ends_at_s: float) -> None:
        self.sock = sock
        self.ends_at_s = ends_at_s
        self.was_cut = False


class _Watchman:
    """Ends answers for which somebody has waited for too long: one thread for all of them.

    A socket's timeout bounds the pause between two bytes: a server that sends one now and then would hold its
    caller for ever.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: set[_Answer] = set()
        self._looks_at_s = math.inf
        """When the thread looks next, unless it is told before."""
        self._thread: threading.Thread | None = None

    def add(self, answer: _Answer) -> None:
        with self._changed:
            self._waiting.add(answer)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="answers", daemon=True)
                self._thread.start()
            elif answer.ends_at_s < self._looks_at_s:
                self._changed.notify()

    def remove(self, answer: _Answer) -> None:
        with self._changed:
            self._waiting.discard(answer)

    def _watch(self) -> None:
        with self._changed:
            while True:
                now_s = time.monotonic()
                for answer in [one for one in self._waiting if one.ends_at_s <= now_s]:
                    self._waiting.discard(answer)
                    answer.was_cut = True
                    with suppress(OSError):  # it was closed before
                        # Not that of an SSL socket, which is no business of another thread.
                        socket.socket.shutdown(answer.sock, socket.SHUT_RDWR)
                self._looks_at_s = min((one.ends_at_s for one in self._waiting), default=math.inf)
                self._changed.wait(min(self._looks_at_s - now_s, threading.TIMEOUT_MAX))


class _Watch(threading.local):
    """The answer that this thread waits for."""

    ends_at_s: float | None = None
    answer: _Answer | None = None

    def start(self, sock: socket.socket) -> None:
        if self.ends_at_s is None:
            return
        if self.answer:  # it led on to another address
            _watchman.remove(self.answer)
        self.answer = _Answer(sock, self.ends_at_s)
        _watchman.add(self.answer)

    def stop(self) -> bool:
        """Return whether the answer was cut off."""
        answer, self.answer, self.ends_at_s = self.answer, None, None
        if answer is None:
            return False
        _watchman.remove(answer)
        return answer.was_cut


_watch = _Watch()
_watchman = _Watchman()


def _new_watchman() -> None:
    """In a forked process the thread is gone, and its lock may be held for ever."""
    global _watchman  # noqa: PLW0603
    _watchman = _Watchman()


os.register_at_fork(after_in_child=_new_watchman)


@contextmanager
def cutting_off(ends_at_s: float) -> Iterator[None]:
    """Give up an answer to this thread's request that is not complete at this time (``time.monotonic()``).

    Raises:
        requests.ReadTimeout: it was given up.
    """
    _watch.ends_at_s = ends_at_s
    trouble: requests.RequestException | None = None
    try:
        yield
    except requests.RequestException as error:
        trouble = error
    finally:
        was_cut = _watch.stop()
    if was_cut:
        # Also without trouble: where the end of the connection ends a body, it looked complete.
        raise requests.ReadTimeout(CUT_OFF) from None
    if trouble:
        raise trouble


class _WatchedHTTP(HTTPConnection):
    def getresponse(self) -> HTTPResponse:  # type: ignore[override]
        _watch.start(self.sock)
        return super().getresponse()


class _WatchedHTTPS(HTTPSConnection):
    trust: Trust

    def connect(self) -> None:
        # One for each connection: renewed client certificates and revocation lists count from the next one
        # on, and no thread changes what another one is using.
        self.ssl_context = self.trust.context()
        try:
            super().connect()
        except ssl.SSLCertVerificationError as error:
            raise self.trust.explained(error) from None

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]
        _watch.start(self.sock)
        return super().getresponse()


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _WatchedHTTP


def _https_pool(trusted: Trust) -> type[HTTPSConnectionPool]:
    class TrustingHTTPS(_WatchedHTTPS):
        trust = trusted

    class HTTPSPool(HTTPSConnectionPool):
        ConnectionCls = TrustingHTTPS

    return HTTPSPool


class _ConnectTo(HTTPAdapter):
    """Connects some host names to an address of our choice; everything else sees the name."""

    def __init__(self, addresses: Mapping[str, str], pool_size: int, servers: int, trust: Trust) -> None:
        self._addresses = {name.lower(): address for name, address in addresses.items()}
        # One pool per name and address, also where many names lead to one server.
        super().__init__(pool_connections=max(servers, len(addresses)), pool_maxsize=pool_size)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _https_pool(trust)}

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> Any:
        built: Any = super().build_connection_pool_key_attributes(request, verify, cert)
        host, tls = built
        address = self._address(host["host"])
        if address:
            if host["scheme"] == "https":
                tls["server_hostname"] = host["host"]
            ip, _, port = address.rpartition(":")
            host |= {"host": ip.strip("[]"), "port": int(port)}
        return host, tls

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:  # noqa: ARG002
        super().cert_verify(conn, url, verify=True, cert=cert)  # type: ignore[no-untyped-call]
        # Else the authorities of certifi would be trusted beside those that were named.
        conn.ca_certs = conn.ca_cert_dir = None

    def add_headers(self, request: requests.PreparedRequest, **_options: Any) -> None:
        url = urlsplit(request.url or "")
        if self._address(url.hostname or ""):
            request.headers["Host"] = url.netloc.rpartition("@")[2]

    def _address(self, name: str) -> str | None:
        name = name.lower()
        return self._addresses.get(name) or self._addresses.get(f"*.{name.partition('.')[2]}")


@dataclass(frozen=True, slots=True)
class Silence:
    """Why there was no answer.

    Attributes:
        maybe_delivered: False when the connection was never made, so that the server cannot have acted.
        untrusted: the connection was given up because of the server's certificate.
    """

    cause: str
    maybe_delivered: bool
    untrusted: bool


class Judge(Protocol):
    """Turns what happened into the errors of one kind of service."""

    def no_answer(self, method: str, url: str, silence: Silence) -> Exception: ...

    def refusal(self, method: str, url: str, answer: Answer) -> Exception: ...


class Caller:
    """Sends requests, and repeats those that may be repeated while their error is :class:`Transient`."""

    def __init__(
        self,
        session: requests.Session,
        judge: Judge,
        patience: Patience | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.session = session
        self._judge = judge
        self._patience = patience or Patience()
        self._sleep = sleep

    def ask(
        self, method: str, url: str, *, may_repeat: bool, accept: Container[int] = (), **options: Any
    ) -> requests.Response:
        """Return the answer if its status is below 300, or in ``accept``.

        Args:
            may_repeat: doing it twice is as good as doing it once. If not, it is repeated only when it cannot
                have arrived.

        Raises:
            Exception: what the judge makes of a refusal or of silence.
        """
        patience = self._patience
        ends_at_s = time.monotonic() + patience.deadline_s
        silent: list[bool] = []

        def before_sleep(state: RetryCallState) -> None:
            _say_that_it_waits(state)
            silent.append(bool(getattr(_error_of(state), "maybe_delivered", False)))

        again = Retrying(
            stop=stop_after_attempt(patience.tries) | stop_before_delay(patience.deadline_s),
            wait=self._wait_s,
            retry=lambda state: _may_try_again(state, may_repeat=may_repeat),
            before_sleep=before_sleep,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return again(self._ask_once, method, url, accept, ends_at_s, options)
        except ServiceError as error:
            error.after_silence = any(silent)
            raise

    def _ask_once(
        self, method: str, url: str, accept: Container[int], ends_at_s: float, options: Mapping[str, Any]
    ) -> requests.Response:
        timeout_s = (self._patience.connect_s, self._patience.read_s)
        try:
            with cutting_off(ends_at_s):
                response = self.session.request(method, url, timeout=timeout_s, **options)
        except requests.RequestException as error:
            # Not "from": the text of these errors holds the whole URL, and a query may hold a secret.
            raise self._judge.no_answer(method, url, silence(error)) from None
        if response.status_code < 300 or response.status_code in accept:
            return response
        raise self._judge.refusal(method, url, answer_of(response))

    def _wait_s(self, state: RetryCallState) -> float:
        patience = self._patience
        wait_s = wait_random_exponential(patience.first_wait_s, max=patience.longest_wait_s)(state)
        asked_for_s = getattr(_error_of(state), "retry_after_s", None) or 0.0
        return max(wait_s, min(asked_for_s, patience.longest_wait_s))


def answer_of(response: requests.Response) -> Answer:
    with response:
        body = response.content
    return Answer(response.status_code, body, _retry_after_s(response.headers.get("Retry-After")))


def _may_try_again(state: RetryCallState, *, may_repeat: bool) -> bool:
    error = _error_of(state)
    return isinstance(error, Transient) and (may_repeat or not error.maybe_delivered)


def _error_of(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _say_that_it_waits(state: RetryCallState) -> None:
    logger.warning(
        "%s; try %d, again in %.1f s", _error_of(state), state.attempt_number, state.upcoming_sleep
    )


def _retry_after_s(header: str | None) -> float | None:
    """Read seconds or a date; what cannot be read counts as not said."""
    if not header:
        return None
    try:
        return float(header)
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def silence(error: BaseException) -> Silence:
    """Say why there was no answer, from whatever ``requests`` wrapped it in."""
    chain = list(_causes(error))
    untrusted = any(isinstance(cause, ssl.SSLCertVerificationError) for cause in chain)
    never_connected = any(isinstance(cause, (requests.ConnectTimeout, NewConnectionError)) for cause in chain)
    innermost = chain[-1]
    return Silence(
        cause=f"{type(innermost).__name__}: {innermost}"[:200],
        maybe_delivered=not (untrusted or never_connected),
        untrusted=untrusted,
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in seen:
        seen.append(found)
        yield found
        context = None if found.__suppress_context__ else found.__context__
        inside = [getattr(found, "reason", None), *found.args, found.__cause__, context]
        found = next((item for item in inside if isinstance(item, BaseException) and item not in seen), None)
