"""Who is next: users take turns, priorities count, limits hold, and no file is taken twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from psycopg import Connection

from asyncstageout.catalogue.claims import (
    _TAKE,
    Barred,
    Entitled,
    LinkView,
    _filters,
    hasten_retries,
    in_flight_of,
    links_with_work,
    redrive_failed,
    take,
    waiting_files,
)
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.cycles import CycleParams, end_stage, open_backfill, open_cycle
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.failures import classify
from asyncstageout.core.planning import SHARE, InFlight, Link
from asyncstageout.core.states import TransferState
from asyncstageout.steps.group import group
from fixtures.catalogue import Add, Plan, assert_audited, new_cycle, nodes, record, states

LINK = Link("T2_IT_Bari", "T2_CH_CERN")
ANY = CycleParams()


def users_of(conn: Connection, ids: list[int]) -> Counter[str]:
    rows = conn.execute("SELECT username FROM transfer WHERE id = ANY(%s)", (ids,))
    return Counter(username for (username,) in rows)


def taken(
    conn: Connection, room: int, users: Sequence[str] = ("alice", "bob", "carol"), *barred: Barred
) -> list[int]:
    entitled = [Entitled(*LINK, user, room) for user in users]
    with conn.transaction(force_rollback=True):
        return [file.transfer_id for file in take(conn, ANY, entitled, barred=barred)]


def test_a_user_with_many_files_does_not_hold_back_one_with_three(conn: Connection, add: Add) -> None:
    add(*(record(number) for number in range(2000)))
    add(*(record(number, username="bob") for number in range(3)))
    ids = taken(conn, 10, ("alice", "bob"))
    assert users_of(conn, ids) == {"alice": 7, "bob": 3}
    # Turns, not a block: bob's files are among the first six.
    assert users_of(conn, ids[:6]) == {"alice": 3, "bob": 3}


def test_three_busy_users_get_equal_shares(conn: Connection, add: Add) -> None:
    for user in ("alice", "bob", "carol"):
        add(*(record(number, username=user) for number in range(100)))
    assert users_of(conn, taken(conn, 90)) == {"alice": 30, "bob": 30, "carol": 30}


def test_priority_gives_a_larger_share_and_starves_nobody(conn: Connection, add: Add) -> None:
    add(*(record(number, priority=5) for number in range(100)))
    add(*(record(number, username="bob", priority=3) for number in range(100)))
    shares = users_of(conn, taken(conn, 50, ("alice", "bob")))
    assert shares["alice"] == 40
    assert shares["bob"] == 10
    assert SHARE[5] / SHARE[3] == 4


def test_a_users_own_files_go_by_priority_then_age(conn: Connection, add: Add) -> None:
    add(record(1, priority=2), record(2), record(3), record(4, priority=5))
    rows = conn.execute("SELECT id FROM transfer ORDER BY priority DESC, id").fetchall()
    assert taken(conn, 10) == [row[0] for row in rows]


def test_what_is_not_due_waits(conn: Connection, add: Add) -> None:
    add(record(1), record(2))
    conn.execute("UPDATE transfer SET due_at = now() + interval '1 hour' WHERE size_bytes = 1001")
    assert len(taken(conn, 10)) == 1


@pytest.mark.parametrize(
    ("params", "count"),
    [
        ({}, 4),
        ({"username": "bob"}, 1),
        ({"task": "261122_alice_task"}, 3),
        ({"source": "T2_US_MIT"}, 1),
        ({"destination": "T2_CH_CERN"}, 4),
        ({"username": "nobody"}, 0),
        ({"limit": 2}, 2),
        ({"created_to": datetime(2026, 1, 1, tzinfo=UTC)}, 0),
        ({"created_from": datetime(2026, 1, 1, tzinfo=UTC)}, 4),
    ],
)
def test_the_form_narrows_what_is_taken(
    conn: Connection, add: Add, plan: Plan, params: dict[str, object], count: int
) -> None:
    add(record(1), record(2), record(3, source="T2_US_MIT"), record(4, username="bob"))
    assert sum(len(job.transfer_ids) for job in plan(**params)) == count


def test_links_show_their_users_and_what_flies(conn: Connection, add: Add, submitted: Plan) -> None:
    add(record(1), record(2))
    submitted()
    add(record(3), record(4, username="bob"), record(5, destination="T1_DE_KIT"))
    assert links_with_work(conn, ANY) == [
        LinkView(Link("T2_IT_Bari", "T1_DE_KIT"), ("alice",), InFlight()),
        LinkView(LINK, ("alice", "bob"), InFlight(2, 2003)),
    ]
    assert in_flight_of(conn, [LINK]) == {(*LINK, "alice", "default"): InFlight(2, 2003)}
    assert waiting_files(conn, LINK) == 2
    assert waiting_files(conn, LINK, at_most=1) == 1


def test_what_is_left_of_a_job_counts_with_its_average_size(
    conn: Connection, add: Add, submitted: Plan
) -> None:
    add(*(record(number) for number in range(1, 11)))
    submitted()
    conn.execute("UPDATE fts_job SET open_files = 5")
    add(record(20))
    (view,) = links_with_work(conn, ANY)
    assert view.in_flight == InFlight(5, (10_000 + 55) * 5 // 10)


def test_who_is_not_entitled_keeps_his_files(conn: Connection, add: Add) -> None:
    add(*(record(number) for number in range(5)), *(record(number, username="bob") for number in range(5)))
    assert users_of(conn, taken(conn, 10, ("bob",))) == {"bob": 5}
    assert taken(conn, 10, ()) == []


def test_a_users_own_room_does_not_narrow_the_link(conn: Connection, add: Add) -> None:
    add(*(record(number) for number in range(20)), *(record(number, username="bob") for number in range(20)))
    entitled = [Entitled(*LINK, "alice", 2), Entitled(*LINK, "bob", 10)]
    with conn.transaction(force_rollback=True):
        files = take(conn, ANY, entitled)
    assert Counter(file.username for file in files) == {"alice": 2, "bob": 8}


def test_what_is_barred_stays_and_holds_nobody_back(conn: Connection, add: Add) -> None:
    add(*(record(number, activity="Bulk") for number in range(50)), record(60), record(61))
    conn.execute("UPDATE transfer SET identity = 'alice++production' WHERE size_bytes = 1060")
    bulk = Barred(*LINK, "alice", "Bulk", None)
    production = Barred(*LINK, "alice", None, "alice++production")
    assert len(taken(conn, 10, ("alice",), bulk)) == 2
    assert len(taken(conn, 10, ("alice",), bulk, production)) == 1
    assert len(taken(conn, 10, ("alice",), Barred(*LINK, "bob", "Bulk", None))) == 10


def test_one_job_per_kind_and_size(conn: Connection, add: Add, plan: Plan) -> None:
    add(*(record(number) for number in range(5)), record(9, priority=5), record(10, activity="Analysis"))
    jobs = plan(files_per_job=2)
    assert sorted(len(job.transfer_ids) for job in jobs) == [1, 1, 1, 2, 2]
    assert states(conn) == {"ACQUIRED": 7}
    assert_audited(conn)


def test_cycles_at_the_same_moment_never_take_the_same_file(
    conn: Connection, add: Add, catalogue_url: str, step: int
) -> None:
    add(*(record(number, username=user) for user in ("alice", "bob") for number in range(300)))

    def one_cycle(number: int) -> None:
        with connect(catalogue_url) as own:
            cycle = open_cycle(own, "stageout_transfer", f"run_{number}", CycleParams(limit=150))
            group(own, cycle, step_run=step)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one_cycle, range(6)))
    rows = conn.execute("SELECT unnest(transfer_ids) FROM fts_job").fetchall()
    assert len(rows) == len(set(rows)) == 600
    assert states(conn) == {"ACQUIRED": 600}
    assert_audited(conn)


def test_a_row_that_somebody_else_holds_is_left_alone(conn: Connection, add: Add, catalogue_url: str) -> None:
    add(record(1), record(2))
    with connect(catalogue_url) as other, other.transaction():
        other.execute("SELECT FROM transfer WHERE size_bytes = 1001 FOR UPDATE")
        assert len(taken(conn, 10)) == 1


def test_a_cycle_is_one_per_run_and_keeps_its_form(conn: Connection) -> None:
    first = open_cycle(conn, "d", "r", CycleParams(limit=5))
    again = open_cycle(conn, "d", "r", CycleParams(limit=9))
    assert first == again
    end_stage(conn, first.cycle_id, "grouped")
    marked = open_cycle(conn, "d", "r", CycleParams())
    end_stage(conn, first.cycle_id, "grouped")
    assert open_cycle(conn, "d", "r", CycleParams()).grouped_at == marked.grouped_at is not None


def test_a_backfill_drives_failed_files_of_its_window_again(
    conn: Connection, add: Add, submitted: Plan, step: int
) -> None:
    add(record(1), record(2))
    (job,) = submitted()
    failure = classify("TRANSFER [5] HTTP 507")
    apply_moves(
        conn, [Move(number, job.sid, TransferState.FAILED, failure) for number in job.transfer_ids], step
    )
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    before = CycleParams(created_from=now - 2 * hour, created_to=now - hour)
    assert redrive_failed(conn, before, step) == 0
    window = CycleParams(created_from=now - hour, created_to=now + hour)
    assert redrive_failed(conn, window, step) == 2
    assert states(conn) == {"NEW": 2}
    assert_audited(conn)


def test_taking_costs_the_same_however_long_the_queue(conn: Connection, add: Add, step: int) -> None:
    """The plan reads a bounded number of rows: no sequential scan, no sort of the queue."""
    queue(conn, add, 20_000)
    conn.execute("ANALYZE transfer")
    plan = plan_of_take(conn, room=100)
    blocks = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    assert blocks < 2000, f"taking 100 of 40,000 waiting files touched {blocks} blocks"


def test_a_burst_into_an_empty_queue_is_not_compared_with_itself(conn: Connection, add: Add) -> None:
    """What the planner believes is older than the burst: that nothing waits, so that any join over it is cheap."""
    conn.execute("ANALYZE transfer")
    queue(conn, add, 1_000)
    plan = plan_of_take(conn, room=500_000, others=998)
    compared = sum(node.get("Rows Removed by Join Filter", 0) * node["Actual Loops"] for node in nodes(plan))
    assert plan["Actual Rows"] == 2_000
    assert compared < 10_000, f"taking 2,000 files compared {compared:,} pairs of rows"


def queue(conn: Connection, add: Add, per_user: int) -> None:
    add(record(0), record(1, username="bob"))
    conn.execute(
        """
        INSERT INTO transfer (request_id, task_id, username, source, destination, source_lfn, destination_lfn,
            size_bytes)
        SELECT username || n, task_id, username, source, destination, source_lfn || n, destination_lfn || n, 1
        FROM transfer, generate_series(1, %s) n
        """,
        (per_user,),
    )


def plan_of_take(conn: Connection, room: int, others: int = 0) -> dict[str, Any]:
    usernames = ["alice", "bob", *(f"user{number}" for number in range(others))]
    arguments = _filters(ANY) | {
        "sources": [LINK.source] * len(usernames),
        "destinations": [LINK.destination] * len(usernames),
        "usernames": usernames,
        "rooms": [room] * len(usernames),
        "barred_sources": [LINK.source],
        "barred_destinations": [LINK.destination],
        "barred_usernames": ["alice"],
        "barred_activities": [None],
        "barred_identities": ["somebody"],
        "priorities": list(SHARE),
        "weights": list(SHARE.values()),
        "overwriting": ["destination-exists"],
    }
    (plan,) = conn.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {_TAKE}", arguments).fetchone() or ([],)
    top: dict[str, Any] = plan[0]["Plan"]
    return top


def test_dry_run_writes_nothing(conn: Connection, add: Add, step: int) -> None:
    add(record(1), record(2))
    cycle = new_cycle(conn, dry_run=True)
    summary, shards = group(conn, cycle, step_run=step, new_sid=uuid4)
    assert summary.sentence == "Would plan 1 FTS jobs, 2 files, 2.0 kB on 1 links"
    assert shards == []
    assert states(conn) == {"NEW": 2}
    assert conn.execute("SELECT count(*) FROM fts_job").fetchone() == (0,)


def test_a_backfill_makes_waiting_files_of_its_window_go_now(
    conn: Connection, add: Add, submitted: Plan, step: int
) -> None:
    add(record(1), record(2))
    (job,) = submitted()
    later = datetime.now(UTC) + timedelta(hours=2)
    failure = classify("TRANSFER [110] probably stalled")
    apply_moves(
        conn,
        [Move(number, job.sid, TransferState.RETRY, failure, later) for number in job.transfer_ids],
        step,
    )
    conn.execute(
        "UPDATE transfer SET created_at = created_at - make_interval(hours => 4 - 3 * (id - 1)::integer)"
    )
    now, hour = datetime.now(UTC), timedelta(hours=1)
    window = CycleParams(created_from=now - 2 * hour, created_to=now + hour)
    assert taken(conn, 10) == []
    assert hasten_retries(conn, window) == 1
    assert taken(conn, 10) == [2]
    assert hasten_retries(conn, window) == 0


def test_a_run_that_a_backfill_runs_again_is_another_cycle(conn: Connection) -> None:
    """Airflow clears the run that is there, keeps its id, and makes it the backfill's."""
    now = datetime.now(UTC)
    window = CycleParams(created_from=now, created_to=now)
    scheduled = open_cycle(conn, "d", "r", CycleParams())
    end_stage(conn, scheduled.cycle_id, "collected")
    first = open_backfill(conn, "d", "r", window)
    assert first.cycle_id != scheduled.cycle_id
    assert first.params == window
    assert open_backfill(conn, "d", "r", window) == first, "nothing is collected yet"
    end_stage(conn, first.cycle_id, "collected")
    second = open_backfill(conn, "d", "r", window)
    assert second.cycle_id != first.cycle_id, "nothing was planned: it may look again"
    for stage in ("collected", "grouped"):
        end_stage(conn, second.cycle_id, stage)
    assert open_backfill(conn, "d", "r", window).cycle_id == second.cycle_id, "it was interrupted and goes on"
    assert open_cycle(conn, "d", "r", CycleParams()).cycle_id == second.cycle_id, "as the other tasks see it"
    end_stage(conn, second.cycle_id, "summarised")
    assert open_backfill(conn, "d", "r", window).cycle_id != second.cycle_id


def test_an_interrupted_run_that_was_scheduled_is_not_the_backfills(conn: Connection) -> None:
    scheduled = open_cycle(conn, "d", "r", CycleParams())
    for stage in ("collected", "grouped"):
        end_stage(conn, scheduled.cycle_id, stage)
    now = datetime.now(UTC)
    assert open_backfill(conn, "d", "r", CycleParams(created_from=now, created_to=now)).params.created_from
