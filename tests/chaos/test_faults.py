"""The steps under faults: real processes, real Postgres, real FTS, files with bytes. `make chaos` adds Airflow.

Four cycles, two sensors and two reconciles work at once, each in another time zone, all through a network that can be bad.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from chaos import MOVING_POINTS
from chaos.bed import Bed, Load, bed
from chaos.ledger import Entry, Ledger
from chaos.proxy import Line

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

SEED = 20261122
LOOKING = frozenset(
    point for point in MOVING_POINTS if point.split(".")[0] in ("collect", "group", "reconcile")
)

TELLING = (
    "collect.after_commit",
    "group.after_intent",
    "submit.before_post",
    "submit.after_post",
    "sense.after_stage",
    "update.before_commit",
    "reconcile.after_repair",
)
"""One for each kind of loss: `make chaos` strikes at all of them, with Airflow around."""


@pytest.fixture(scope="module")
def running() -> Iterator[Bed]:
    with bed(SEED) as made:
        yield made


@pytest.fixture(scope="module")
def ledger() -> Iterator[Ledger]:
    kept = Ledger()
    yield kept
    print("\n" + kept.table())  # noqa: T201 -- shown by `pytest -s`


def check(ledger: Ledger, bed: Bed, load: Load, *, fault: str, injected: int, in_flight: int) -> None:
    """Wait for the end of a fault's files, and hold what happened to them against the promises."""
    findings = bed.until_final(load)
    ledger.entries.append(Entry(fault, injected, in_flight, findings))
    assert findings.is_right, findings
    assert injected


@pytest.mark.parametrize("point", TELLING)
def test_a_worker_is_killed_between_two_effects(running: Bed, ledger: Ledger, point: str) -> None:
    """A2, A3 and everything like them: the same work goes on, once, whatever was done already."""
    # Steps that look come by again and again; those that act may have done all at once.
    running.arm(point, visits=running.random.randint(1, 3) if point in LOOKING else 1)
    load = running.load()
    running.until(point, running.has_fired)
    check(ledger, running, load, fault=f"kill -9 at {point}", injected=1, in_flight=running.in_flight(load))


Strike = Callable[[Bed, Load], int]
"""Do the damage, undo it where it would last, and return how many times it struck."""


def _once(act: Callable[[Bed], object]) -> Strike:
    def strike(bed: Bed, _: Load) -> int:
        act(bed)
        return 1

    return strike


def _sites(bed: Bed, _: Load) -> int:
    bed.sites.kill()
    bed.sites.start()
    return 1


def _workers(bed: Bed, load: Load) -> int:
    """Whoever it hits, again and again, as long as files are on their way."""
    strikes = 0
    while (left := bed.in_flight(load)) and strikes < 8:
        bed.kill_worker()
        strikes += 1
        bed.until("progress", partial(_progressed, bed, load, left))
    return strikes


def _progressed(bed: Bed, load: Load, before: int) -> bool:
    return bed.in_flight(load) < before


DEATHS: dict[str, Strike] = {
    "kill -9 of the FTS": _once(Bed.kill_fts),
    "kill -9 of the FTS, which forgets": _once(lambda bed: bed.kill_fts(forget=True)),
    "kill -9 of the sites": _sites,
    "kill -9 of Postgres": _once(Bed.kill_postgres),
    "kill -9 of a Postgres backend": _once(Bed.kill_backend),
    "kill -9 of workers": _workers,
}


LONG = {"kill -9 of the FTS, which forgets"}
"""Jobs count as lost a minute after that."""


@pytest.mark.parametrize(
    "fault", [pytest.param(one, marks=pytest.mark.long) if one in LONG else one for one in DEATHS]
)
def test_a_process_is_killed_while_files_move(running: Bed, ledger: Ledger, fault: str) -> None:
    load = running.load()
    in_flight = running.until_moving(load)
    assert in_flight, "the fault met no file on its way"
    injected = DEATHS[fault](running, load)
    check(ledger, running, load, fault=fault, injected=injected, in_flight=in_flight)


@pytest.mark.parametrize("line", [line for line in Line if line is not Line.GOOD], ids=lambda line: line.name)
@pytest.mark.parametrize("to", ["FTS", "Postgres"])
def test_the_network_is_bad(running: Bed, ledger: Ledger, to: str, line: Line) -> None:
    """A1, A4 and A9 where they come from: requests that arrive and answers that do not."""
    proxy = running.fts_line if to == "FTS" else running.postgres_line
    proxy.be(line)
    try:
        load = running.load()
        running.until("a request on the bad line", lambda: proxy.hits(line) >= 3)
        in_flight = running.in_flight(load)
    finally:
        if line is Line.STALL:
            # What was stalled breaks in the end: TCP gives up, or somebody's timeout.
            proxy.be(Line.CUT)
        proxy.be(Line.GOOD)
    check(ledger, running, load, fault=f"{to}: {line.value}", injected=proxy.hits(line), in_flight=in_flight)
