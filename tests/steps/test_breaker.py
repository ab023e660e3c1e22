"""A link that fails: its files wait instead of failing, a few probe it, and it comes back by itself."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import pytest
from psycopg import Connection

from asyncstageout.catalogue.link_health import why_waiting
from asyncstageout.catalogue.policies import put_policy
from asyncstageout.core.planning import Link
from fixtures.catalogue import Add, assert_audited, record, states
from fixtures.cycles import House

DOWN = "SOURCE [112] Result curl error (56): Failure when receiving data from the peer after 1 attempts"
OPENED = "30 of 30 attempts failed, lately SOURCE [112] Result curl error (56)"


def breaker(conn: Connection) -> tuple[str, int, int] | None:
    """State, openings and minutes until the next probe."""
    return conn.execute(
        "SELECT state, openings, round(extract(epoch FROM probe_at - now()) / 60)::integer FROM link_breaker"
    ).fetchone()


def attempts(conn: Connection) -> Counter[int]:
    return Counter(row[0] for row in conn.execute("SELECT attempt FROM transfer"))


def end_files(house: House) -> str:
    house.finish_at_fts()
    house.sense()
    return house.update().sentence


def let_probe(house: House) -> None:
    house.conn.execute("UPDATE link_breaker SET probe_at = now() - interval '1 s' WHERE state = 'open'")
    house.make_due()


@pytest.fixture
def broken(house: House, add: Add) -> House:
    """A house whose only link has just lost 30 of 30 attempts; 30 files more have never been tried."""
    house.set_faults(links=[{"reason": DOWN}])
    add(*(record(number) for number in range(30)))
    house.run_cycle("first")
    assert end_files(house).endswith("0 failed for good; breakers opened on 1 links")
    add(*(record(number) for number in range(100, 130)))
    return house


def test_it_opens_and_files_wait_without_using_attempts(broken: House) -> None:
    assert breaker(broken.conn) == ("open", 1, 5)
    broken.make_due()
    for run_id in ("a", "b", "c"):
        assert broken.run_cycle(run_id).counts["files"] == 0
    assert attempts(broken.conn) == {0: 30, 1: 30}
    assert states(broken.conn) == {"RETRY": 30, "NEW": 30}
    (held, room) = broken.conn.execute(
        "SELECT held, room FROM cycle_link ORDER BY cycle_id DESC LIMIT 1"
    ).fetchone() or ("", -1)
    assert held.startswith("breaker open since ")
    assert OPENED in held
    assert "; next probe " in held
    assert room == 0
    link = Link("T2_IT_Bari", "T2_CH_CERN")
    assert why_waiting(broken.conn, link, "service", datetime.now(UTC)) == held
    assert why_waiting(broken.conn, Link("T2_IT_Bari", "T1_DE_KIT"), "service", datetime.now(UTC)) is None


def test_a_probe_that_fails_opens_it_again_for_longer(broken: House) -> None:
    for openings, minutes in ((2, 10), (3, 20), (4, 40), (5, 60), (6, 60)):
        let_probe(broken)
        assert broken.run_cycle(f"probe {openings}").counts["files"] == 5
        assert breaker(broken.conn) == ("probing", openings - 1, 0)
        end_files(broken)
        assert breaker(broken.conn) == ("open", openings, minutes)
    assert_audited(broken.conn)


def test_a_probe_that_succeeds_closes_it(broken: House) -> None:
    broken.set_faults()
    let_probe(broken)
    assert broken.run_cycle("probe").counts["files"] == 5
    assert (
        end_files(broken) == "5 files done, 0 go again later, 0 failed for good; breakers closed on 1 links"
    )
    assert breaker(broken.conn) is None
    assert broken.run_cycle("all").counts["files"] == 55
    assert end_files(broken).startswith("55 files done")
    assert breaker(broken.conn) is None, "the failures of before are forgotten"
    assert states(broken.conn) == {"DONE": 60}
    assert_audited(broken.conn)


def test_two_cycles_at_once_probe_once(broken: House) -> None:
    """Cycles group one after the other; the second one sees that a probe is under way."""
    let_probe(broken)
    broken.collect("one")
    broken.collect("two")
    counts = [broken.group(run_id)[0].counts["files"] for run_id in ("one", "two")]
    assert counts == [5, 0]
    assert broken.run_cycle("three").counts["files"] == 0


def test_a_dry_run_starts_no_probe(broken: House) -> None:
    let_probe(broken)
    broken.collect("dry", dry_run=True)
    summary, _ = broken.group("dry")
    assert summary.sentence.startswith("Would plan 1 FTS jobs, 5 files")
    assert breaker(broken.conn) == ("open", 1, 0)


def test_a_probe_that_says_nothing_of_the_link_is_repeated(broken: House) -> None:
    """The five files of the probe are missing at their source: nobody learnt anything about the link."""
    broken.set_faults(links=[{"reason": "SOURCE [2] No such file or directory"}])
    let_probe(broken)
    broken.run_cycle("probe")
    end_files(broken)
    assert breaker(broken.conn) == ("open", 1, 0)
    broken.set_faults()
    assert broken.run_cycle("again").counts["files"] == 5
    end_files(broken)
    assert breaker(broken.conn) is None


def test_what_was_under_way_may_close_it(house: House, add: Add) -> None:
    """The link mends while hundreds of its files are still in FTS: no need to wait for the probe."""
    add(*(record(number) for number in range(60)))
    put_policy(house.conn, None, None, {"files_per_job": 30}, "test")
    house.set_faults(links=[{"reason": DOWN, "tries": 1}])
    house.run_cycle("both")
    house.finish_at_fts()
    house.sense()
    house.conn.execute("DELETE FROM fts_report WHERE sid = (SELECT sid FROM fts_job ORDER BY sid LIMIT 1)")
    house.update()
    assert breaker(house.conn) == ("open", 1, 5)
    # Its minute is over.
    house.conn.execute("UPDATE link_breaker SET opened_at = opened_at - interval '2 minutes'")
    house.conn.execute("UPDATE link_window SET minute = minute - interval '5 minutes'")
    house.sense()
    house.conn.execute("UPDATE fts_report SET file_state = 'FINISHED', job_state = 'FINISHED', reason = ''")
    assert "breakers closed on 1 links" in house.update().sentence


@pytest.mark.parametrize(
    ("reason", "opens"),
    [
        (DOWN, True),
        ("something new under the sun", True),
        ("TRANSFER [5] copy HTTP 507 : Insufficient Storage", False),
        ("DESTINATION [1] HTTP 403 : Permission refused", False),
        ("SOURCE [2] No such file or directory", False),
        ("SOURCE [5] The proxy expired", False),
    ],
)
def test_only_what_speaks_of_the_link_counts(house: House, add: Add, reason: str, opens: bool) -> None:
    house.set_faults(links=[{"reason": reason}])
    add(*(record(number) for number in range(25)))
    house.run_cycle()
    end_files(house)
    assert (breaker(house.conn) is not None) is opens


def test_the_policy_of_a_link_sets_the_numbers(house: House, add: Add) -> None:
    put_policy(house.conn, None, "T1_DE_KIT", {"breaker_attempts": 5}, "test")
    put_policy(house.conn, None, "T2_ES_IFCA", {"breaker_attempts": 0}, "test")
    house.set_faults(links=[{"reason": DOWN}])
    for start, site in enumerate(("T1_DE_KIT", "T2_ES_IFCA", "T2_CH_CERN")):
        add(*(record(100 * start + number, destination=site) for number in range(6)))
    house.run_cycle()
    end_files(house)
    assert house.conn.execute("SELECT destination FROM link_breaker").fetchall() == [("T1_DE_KIT",)]


def test_old_minutes_count_no_more_and_go(house: House, add: Add) -> None:
    house.set_faults(links=[{"reason": DOWN}])
    add(*(record(number) for number in range(15)))
    house.run_cycle("one")
    end_files(house)
    house.conn.execute("UPDATE link_window SET minute = minute - interval '2 hours'")
    add(*(record(number) for number in range(50, 65)))
    house.run_cycle("two")
    end_files(house)
    assert breaker(house.conn) is None
    assert house.conn.execute("SELECT sum(failed), count(*) FROM link_window").fetchone() == (15, 1)
