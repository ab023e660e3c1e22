"""What waits and what is under way: counted, and estimated where it is too much to be counted; samples of a link."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from psycopg import Connection

from asyncstageout.catalogue import queues as module
from asyncstageout.catalogue.link_jobs import last_failures, last_jobs
from asyncstageout.catalogue.queues import own_files, queue_on, queues
from asyncstageout.core.planning import Link
from fixtures.catalogue import Add, Plan, record

BARI, MIT = Link("T2_IT_Bari", "T2_CH_CERN"), Link("T2_US_MIT", "T2_CH_CERN")


def test_what_waits_and_what_is_under_way(conn: Connection, add: Add, plan: Plan, submitted: Plan) -> None:
    add(*(record(number) for number in range(3)))
    submitted(files_per_job=2)
    add(record(3))
    plan()
    add(record(4), record(5, source="T2_US_MIT"), record(6, source="T2_US_MIT"))
    conn.execute("UPDATE transfer SET due_at = now() - interval '2 h' WHERE source_lfn LIKE '%out_5.root'")
    conn.execute("UPDATE transfer SET due_at = now() + interval '1 h' WHERE source_lfn LIKE '%out_6.root'")

    found = queues(conn)
    assert not found.is_estimate
    bari, mit = found.by_link[BARI], found.by_link[MIT]
    assert (bari.waiting, bari.in_flight, bari.jobs, bari.in_doubt) == (1, 4, 3, 1)
    assert bari.in_flight_bytes == 1000 + 1001 + 1002 + 1003
    assert (mit.waiting, mit.in_flight) == (2, 0)
    assert mit.oldest_due_at is not None
    assert timedelta(hours=2) <= datetime.now(UTC) - mit.oldest_due_at < timedelta(hours=3)
    assert (found.total.waiting, found.total.in_flight, found.total.oldest_due_at) == (
        3,
        4,
        mit.oldest_due_at,
    )
    assert queue_on(conn, BARI) == (bari, False)


def test_a_file_that_ended_in_a_job_is_no_more_under_way(conn: Connection, add: Add, submitted: Plan) -> None:
    add(record(0), record(2000))
    submitted()
    conn.execute("UPDATE fts_job SET open_files = 1")
    found = queues(conn).by_link[BARI]
    assert (found.in_flight, found.in_flight_bytes) == (1, 2000)


def test_a_long_queue_is_estimated(conn: Connection, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    add(
        *(
            record(number, source=source)
            for number in range(60)
            for source in (("T2_IT_Bari", "T2_US_MIT")[number % 3 == 0],)
        )
    )
    conn.execute("UPDATE transfer SET due_at = now() - interval '2 h' WHERE source_lfn LIKE '%out_7.root'")
    conn.execute("VACUUM ANALYZE transfer")
    monkeypatch.setattr(module, "COUNTED_UP_TO", 30)
    found = queues(conn)
    assert found.is_estimate
    assert found.total.waiting == 60
    assert {link: queue.waiting for link, queue in found.by_link.items()} == {BARI: 40, MIT: 20}
    assert found.total.oldest_due_at is not None
    assert datetime.now(UTC) - found.total.oldest_due_at > timedelta(hours=2)
    assert queue_on(conn, BARI)[1], "more than were counted"


def test_users_files_by_state(
    conn: Connection, add: Add, submitted: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(*(record(number) for number in range(3)), record(9, username="bob"))
    submitted()
    add(record(4))
    assert own_files(conn, ["alice"]).states == {"SUBMITTED": 3, "NEW": 1}
    assert own_files(conn, ["alice", "bob"]).states == {"SUBMITTED": 4, "NEW": 1}
    assert not own_files(conn, ["alice"]).is_capped
    monkeypatch.setattr(module, "OWN_FILES_UP_TO", 2)
    capped = own_files(conn, ["alice"])
    assert capped.is_capped
    assert capped.states == {"NEW": 1, "SUBMITTED": 1}, "the newest"


def test_the_last_jobs_of_a_link_and_what_failed_in_them(conn: Connection, add: Add, submitted: Plan) -> None:
    add(record(1), record(2), record(3, source="T2_US_MIT"))
    submitted(files_per_job=1)
    conn.execute(
        "UPDATE transfer SET state = 'RETRY', failure_category = 'quota', failure_reason = 'no room'"
        " WHERE source_lfn LIKE '%out_2.root'"
    )
    jobs = last_jobs(conn, BARI)
    assert [(job["state"], job["files"], job["fts_server"]) for job in jobs] == [("SUBMITTED", 1, "fts")] * 2
    assert len(last_jobs(conn, BARI, limit=1)) == 1
    (failed,) = last_failures(conn, BARI)
    assert (failed["state"], failed["username"], failed["failure_reason"]) == ("RETRY", "alice", "no room")
    assert last_failures(conn, MIT) == []


def test_no_question_reads_the_whole_table(conn: Connection, add: Add) -> None:
    """Whatever the planner believes: the table is large, and it takes the index."""
    add(*(record(number) for number in range(50)))
    conn.execute("UPDATE transfer SET state = 'DONE', ended_at = now() WHERE id % 10 <> 0")
    conn.execute("VACUUM ANALYZE transfer")
    conn.execute("SET enable_seqscan = off")
    for query, values in (
        (module._WAITING, {"at_most": 1000}),
        (module._WAITING_ON, (*BARI, 1000)),
        (module._IN_FLIGHT, {"source": None, "destination": None}),
        (module._OWN, {"usernames": ["alice"], "at_most": 10}),
    ):
        plan = "\n".join(row[0] for row in conn.execute("EXPLAIN " + query, values))
        assert "Seq Scan" not in plan, plan
