"""Counts attempts that ended on each link, and opens and closes the links' breakers by them."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from psycopg import Connection

from asyncstageout.catalogue.link_health import (
    LinkHealth,
    close_breaker,
    count_ended,
    health_of,
    lock_breakers,
    open_breaker,
)
from asyncstageout.catalogue.transitions import Move
from asyncstageout.core.breaker import Score, Step, account, next_step, wait_s
from asyncstageout.core.failures import SPEAKS_OF_LINK
from asyncstageout.core.planning import Link
from asyncstageout.core.policies import LinkPolicy
from asyncstageout.core.states import TransferState

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Ended:
    """The attempts of one link that ended, as far as they speak of the link."""

    succeeded: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """How often an attempt failed with this reason."""

    @property
    def score(self) -> Score:
        return Score(self.succeeded, self.reasons.total())


class Tally(defaultdict[Link, Ended]):
    """What one update saw on each link."""

    def __init__(self) -> None:
        super().__init__(Ended)

    def add(self, conn: Connection, moves: Iterable[tuple[Link, Move]]) -> None:
        """Count moves, here and in the catalogue; call it in the transaction that makes them."""
        batch: defaultdict[Link, Ended] = defaultdict(Ended)
        for link, move in moves:
            if move.to_state is TransferState.DONE:
                batch[link].succeeded += 1
            elif move.failure and move.failure.category in SPEAKS_OF_LINK:
                batch[link].reasons[move.failure.reason] += 1
        count_ended(conn, {link: ended.score for link, ended in batch.items()})
        for link, ended in batch.items():
            self[link].succeeded += ended.succeeded
            self[link].reasons.update(ended.reasons)


def judge_links(conn: Connection, tally: Tally, policy_of: Callable[[str, str], LinkPolicy]) -> Counter[Step]:
    """Take the next step for each link that was counted or has a breaker; return how many took which."""
    taken: Counter[Step] = Counter()
    with conn.transaction():
        lock_breakers(conn)
        for health in health_of(conn, list(tally)):
            state = health.breaker.state if health.breaker else None
            step = next_step(state, health.recent, health.probe, policy_of(*health.link))
            if step is not Step.STAY:
                _take(conn, health, step, tally)
                taken[step] += 1
    return taken


def _take(conn: Connection, health: LinkHealth, step: Step, tally: Tally) -> None:
    link, breaker = health.link, health.breaker
    if step is Step.CLOSE:
        close_breaker(conn, link)
        logger.warning("%s: breaker closed, files go again", link)
        return
    openings = breaker.openings if breaker else 0
    reason = breaker.reason if breaker else ""
    if step is not Step.PROBE_AGAIN:
        openings += 1
        reasons = tally[link].reasons.most_common(1)
        score = health.recent if step is Step.OPEN else health.probe
        reason = account(score, reasons[0][0]) if reasons else reason
        logger.warning("%s: breaker open: %s", link, reason)
    pause_s = 0.0 if step is Step.PROBE_AGAIN else wait_s(openings)
    open_breaker(conn, link, reason=reason, openings=openings, wait_s=pause_s)
