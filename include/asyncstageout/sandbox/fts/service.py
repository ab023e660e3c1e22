"""One sandbox FTS, put together; a program or a test serves its applications."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from starlette.types import ASGIApp

from asyncstageout.clients.http import Access, new_session
from asyncstageout.clients.messages import Broker
from asyncstageout.sandbox.faults import Faults
from asyncstageout.sandbox.fts.api import Pulse, Service, application
from asyncstageout.sandbox.fts.copying import Copied, PooledCopier, sites_session
from asyncstageout.sandbox.fts.delegation import Delegations
from asyncstageout.sandbox.fts.engine import Engine, Limits
from asyncstageout.sandbox.fts.identity import Identities
from asyncstageout.sandbox.fts.journal import Journal
from asyncstageout.sandbox.fts.messages import Publisher
from asyncstageout.sandbox.fts.monitor import monitor
from asyncstageout.sandbox.fts.simulation import Pace
from asyncstageout.sandbox.fts.submission import Rules
from asyncstageout.sandbox.fts.tokens import FTSTokens
from asyncstageout.sandbox.fts.transfer_log import TransferLog
from asyncstageout.sandbox.jwts import Verifier

WORKERS_WITH_BYTES = 8
WORKERS_WITHOUT_BYTES = 2000


@dataclass(frozen=True, slots=True)
class Options:
    """What one sandbox FTS is like."""

    state: Path
    """Directory of ``fts.sqlite`` and ``transfers.jsonl``."""
    vo: str | None = "cms"
    """VO of DNs that ``gridmap`` does not name; None gives each its own, as a real FTS does."""
    gridmap: Mapping[str, str] = field(default_factory=dict)
    root_dns: frozenset[str] = frozenset()
    with_bytes: bool = True
    connect_to: str | None = None
    """``host:port`` where all sites are."""
    ca: str | None = None
    """CA of the certificates of sites and token issuers (PEM)."""
    token_issuers: tuple[str, ...] = ()
    """URLs of issuers whose tokens count; without any, a bearer is nobody."""
    token_connect_to: Mapping[str, str] = field(default_factory=dict)
    """Host of an issuer -> ``ip:port``, where its name does not lead to it."""
    token_audiences: tuple[str, ...] = ()
    """What a bearer may be for, besides every service."""
    faults: Path | None = None
    require_delegation: bool = False
    start_empty: bool = False
    broker: str | None = None
    """URL of a broker that gets monitoring messages, such as ``stomp://127.0.0.1:61613``."""
    rules: Rules = field(default_factory=Rules)
    limits: Limits = field(default_factory=Limits)
    pace: Pace = field(default_factory=Pace)


class SandboxFTS:
    """A running service without a socket: ``app`` is its API, ``monitor`` its page for people."""

    def __init__(self, options: Options, clock: Callable[[], float] = time.time) -> None:
        self._journal = Journal(options.state / "fts.sqlite", start_empty=options.start_empty)
        self._log = TransferLog(options.state / "transfers.jsonl", clock)
        self.engine = Engine(
            self._journal,
            clock,
            limits=options.limits,
            pace=options.pace,
            faults=Faults(path=options.faults),
            log=self._log,
        )
        self.delegations = Delegations(self._journal, required=options.require_delegation)
        pulse = Pulse(self.engine)
        self.call = pulse.call
        """Do something on the engine's own thread, while the application is served."""
        self._copier = _copier(options, _Relay(self.engine, pulse)) if options.with_bytes else None
        self.engine.copier = self._copier
        self._publisher = Publisher(Broker.of(options.broker), clock) if options.broker else None
        if self._publisher:
            self.engine.on_change = self._publisher.changed
        identities = Identities(options.vo, options.gridmap, options.root_dns)
        tokens = None
        if options.token_issuers:
            issuers = new_session(Access(ca=options.ca, connect_to=options.token_connect_to))
            verifier = Verifier(options.token_issuers, issuers, clock)
            tokens = FTSTokens(verifier, identities, options.token_audiences)
        service = Service(self.engine, identities, self.delegations, options.rules, tokens)
        self.app: ASGIApp = application(service, pulse, close=self.close)
        self.monitor: ASGIApp = monitor(self.engine)

    def close(self) -> None:
        """Stop copies, write what is in memory, close files. What was being copied starts again next time."""
        if self._copier:
            self._copier.close()
        if self._publisher:
            self._publisher.close()
        self._journal.close()
        self._log.close()


class _Relay:
    """Passes what copying threads report to the engine's own thread."""

    def __init__(self, engine: Engine, pulse: Pulse) -> None:
        self._engine = engine
        self._pulse = pulse

    def copy_started(self, file_id: int, try_number: int, size_bytes: int) -> None:
        self._pulse.from_thread(self._engine.copy_started, file_id, try_number, size_bytes)

    def copy_ended(self, file_id: int, try_number: int, copied: Copied) -> None:
        self._pulse.from_thread(self._engine.copy_ended, file_id, try_number, copied)


def _copier(options: Options, relay: _Relay) -> PooledCopier:
    return PooledCopier(partial(sites_session, options.ca, options.connect_to), relay, options.limits.workers)
