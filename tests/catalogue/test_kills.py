"""Kills and retries by people: set-based, once, on record, and beside sensing never doubled."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection

from asyncstageout.catalogue.audit import audit
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.kills import OUTCOMES, kill, would_kill
from asyncstageout.catalogue.retries_by_people import OUTCOMES as RETRY_OUTCOMES
from asyncstageout.catalogue.retries_by_people import retry_files, would_retry
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.failures import classify
from asyncstageout.core.selections import Selection
from asyncstageout.core.states import TransferState
from fixtures.catalogue import Add, Plan, assert_audited, file_ids, open_files, record, states

S = TransferState
ALL = Selection(source="T2_IT_Bari")
ALICES = Selection(username="alice")
BROKEN = classify("TRANSFER [5] HTTP 507 : Insufficient Storage")


def kill_all(conn: Connection, step: int, selection: Selection = ALL) -> dict[str, int]:
    return kill(conn, selection, None, comment="killed by test", step_run=step).counts


def end(conn: Connection, step: int, to_state: TransferState) -> dict[str, int]:
    """End everything that FTS has, as an answer of FTS does."""
    rows = conn.execute("SELECT id, fts_job FROM transfer WHERE state IN ('SUBMITTED', 'KILL')").fetchall()
    failure = None if to_state is S.DONE else BROKEN
    return apply_moves(conn, [Move(number, sid, to_state, failure) for number, sid in rows], step)


def assert_sound(conn: Connection) -> None:
    assert_audited(conn)
    assert [result for result in audit(conn) if result.violations] == []


def test_every_state_has_an_outcome() -> None:
    assert set(OUTCOMES) == set(RETRY_OUTCOMES) == set(TransferState)


def test_a_kill_stops_what_waits_and_marks_what_fts_may_have(
    conn: Connection, add: Add, submitted: Plan, plan: Plan, step: int
) -> None:
    add(record(0))
    submitted()
    add(record(1))
    plan()
    add(record(2))
    assert would_kill(conn, ALL, None).counts == {"killed": 1, "being_killed": 2}
    assert kill_all(conn, step) == {"killed": 1, "being_killed": 2}
    assert states(conn) == {"KILL": 2, "KILLED": 1}
    assert kill_all(conn, step) == {"already_being_killed": 2, "already_killed": 1}
    assert_sound(conn)


def test_the_job_of_a_killed_file_is_looked_at(
    conn: Connection, add: Add, submitted: Plan, step: int
) -> None:
    add(record(0))
    submitted()
    conn.execute("UPDATE fts_job SET fts_state = 'SUBMITTED', next_poll_at = now() + interval '1 h'")
    kill_all(conn, step)
    assert conn.execute("SELECT fts_state, next_poll_at <= now() FROM fts_job").fetchone() == (None, True)


@pytest.mark.parametrize(("ended", "final"), [(S.DONE, "DONE"), (S.FAILED, "KILLED"), (S.RETRY, "KILLED")])
def test_fts_decides_how_a_kill_ends(
    conn: Connection, *, add: Add, submitted: Plan, step: int, ended: TransferState, final: str
) -> None:
    add(record(0))
    submitted()
    kill_all(conn, step)
    end(conn, step, ended)
    assert states(conn) == {final: 1}
    assert kill_all(conn, step) == {{"DONE": "too_late", "KILLED": "already_killed"}[final]: 1}
    assert set(open_files(conn).values()) == {0}
    assert_sound(conn)


def test_a_file_that_failed_once_is_killed_while_it_waits(
    conn: Connection, add: Add, submitted: Plan, step: int
) -> None:
    add(record(0))
    submitted()
    end(conn, step, S.RETRY)
    assert kill_all(conn, step) == {"killed": 1}
    assert_sound(conn)


def test_a_call_has_its_limit_and_the_next_goes_on(conn: Connection, add: Add, step: int) -> None:
    add(*(record(number) for number in range(5)))
    first = kill(conn, ALL, None, comment="", step_run=step, at_most=3)
    assert first.counts == {"killed": 3, "left_over": 2}
    assert kill_all(conn, step) == {"killed": 2, "already_killed": 3}


def test_only_what_is_visible_is_touched(conn: Connection, add: Add, step: int) -> None:
    add(record(0), record(1, username="bob"))
    ids = Selection(ids=tuple(file_ids(conn)))
    done = kill(conn, ids, ["bob"], comment="", step_run=step)
    assert done.counts == {"not_yours": 1, "killed": 1}
    assert states(conn) == {"NEW": 1, "KILLED": 1}


def test_a_thousand_files_are_one_statement(conn: Connection, add: Add, step: int, monkeypatch) -> None:
    answers = add(*(record(number) for number in range(1000)))
    ids = Selection(ids=tuple(answer.request_id for answer in answers))
    statements: list[object] = []
    execute = Connection.execute
    monkeypatch.setattr(
        Connection, "execute", lambda self, query, *rest, **options: (
            statements.append(query), execute(self, query, *rest, **options))[1]
    )  # fmt: skip
    assert kill(conn, ids, None, comment="", step_run=step).counts == {"killed": 1000}
    assert len(statements) == 1


# --- retries ---


def retry_all(
    conn: Connection, step: int, *, killed_too: bool = False
) -> tuple[dict[str, int], dict[str, int]]:
    would = would_retry(conn, ALICES, None, killed_too=killed_too)
    did = retry_files(conn, ALICES, None, comment="again", step_run=step, killed_too=killed_too)
    assert would == did
    return did.counts, did.reasons


def test_a_retry_gives_all_attempts_back(conn: Connection, add: Add, submitted: Plan, step: int) -> None:
    add(record(0))
    submitted()
    end(conn, step, S.FAILED)
    assert retry_all(conn, step) == ({"sent_again": 1}, {})
    assert retry_all(conn, step) == ({"already_waiting": 1}, {})
    assert conn.execute("SELECT state::text, attempt, fts_job FROM transfer").fetchone() == ("NEW", 0, None)
    submitted()
    assert retry_all(conn, step) == ({"already_under_way": 1}, {})
    assert_sound(conn)


def test_a_killed_file_is_sent_again_where_asked(conn: Connection, add: Add, step: int) -> None:
    add(record(0))
    kill_all(conn, step)
    assert retry_all(conn, step) == ({"killed": 1}, {})
    assert retry_all(conn, step, killed_too=True) == ({"sent_again": 1}, {})
    assert_sound(conn)


def test_two_files_never_write_one_destination(
    conn: Connection, add: Add, submitted: Plan, step: int
) -> None:
    same = record(0)["destination_lfn"]
    add(record(0))
    submitted()
    end(conn, step, S.FAILED)
    add(record(1, destination_lfn=same))
    on_its_way = {"another file is on its way to its destination": 1}
    assert retry_all(conn, step) == ({"refused": 1, "already_waiting": 1}, on_its_way)
    submitted()
    end(conn, step, S.FAILED)
    superseded = {"a later request for its destination has taken its place": 1}
    assert retry_all(conn, step) == ({"refused": 1, "sent_again": 1}, superseded)
    submitted()
    end(conn, step, S.DONE)
    conn.execute("UPDATE transfer SET ended_at = now() - interval '2 days'")
    move_finished(conn)
    assert retry_all(conn, step) == ({"refused": 1}, superseded)
    assert_sound(conn)


# --- beside others ---


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(ended=st.lists(st.sampled_from([S.DONE, S.RETRY, S.FAILED]), min_size=4, max_size=4))
def test_a_kill_beside_sensing_never_doubles(
    conn: Connection, *, catalogue_url: str, add: Add, submitted: Plan, step: int, ended: list[TransferState]
) -> None:
    """Two kills and two answers of FTS at once: each file has one line of events that ends in its state."""
    number = len(file_ids(conn))
    add(*(record(number + place) for place in range(8)))
    submitted(files_per_job=3)
    add(*(record(number + place) for place in range(8, 12)))
    open_now = conn.execute(
        "SELECT id, fts_job FROM transfer WHERE state = 'SUBMITTED' ORDER BY id"
    ).fetchall()
    moves = [
        Move(one, sid, state, None if state is S.DONE else BROKEN)
        for (one, sid), state in zip(open_now, chain(ended, ended), strict=True)
    ]

    def alone(act: object) -> None:
        with connect(catalogue_url) as own:
            act(own)  # type: ignore[operator]

    acts = [
        lambda own: kill_all(own, step, ALICES),
        lambda own: apply_moves(own, moves, step),
        lambda own: apply_moves(own, list(reversed(moves)), step),
        lambda own: kill_all(own, step, ALICES),
    ]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(alone, acts))
    end(conn, step, S.DONE)
    left = set(states(conn))
    assert left <= {"DONE", "FAILED", "KILLED"}
    assert_sound(conn)
