"""Limits, pauses and names in a cycle: what they stop, and that they stop nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from psycopg import Connection

from asyncstageout.catalogue.cycles import CycleParams, open_cycle
from asyncstageout.catalogue.identity_holds import hold
from asyncstageout.catalogue.jobs import jobs_to_submit
from asyncstageout.catalogue.policies import put_policy
from asyncstageout.catalogue.restrictions import Area, restrict
from asyncstageout.catalogue.storages import put_sites, put_storages
from asyncstageout.core.restrictions import Mode
from asyncstageout.core.storages.model import Protocol, Rule, Storage
from asyncstageout.steps.collect import collect
from asyncstageout.steps.group import group
from asyncstageout.steps.recording import Summary
from fixtures.catalogue import Add, assert_audited, record, states


def cycle(conn: Connection, step: int, name: str = "run") -> tuple[Summary, Summary]:
    """Collect and group, and return what both said."""
    collected = collect(
        conn, dag_id="d", run_id=name, params=CycleParams(), today=datetime.now(UTC).date(), step_run=step
    )
    grouped, _ = group(conn, open_cycle(conn, "d", name, CycleParams()), step_run=step)
    return collected, grouped


def in_flight(conn: Connection) -> dict[str, int]:
    return dict(
        conn.execute("SELECT username, count(*) FROM transfer WHERE state = 'ACQUIRED' GROUP BY 1").fetchall()
    )


def held(conn: Connection) -> list[str]:
    return [
        row[0] for row in conn.execute("SELECT held FROM cycle_link WHERE held IS NOT NULL ORDER BY held")
    ]


def files(count: int, **fields: Any) -> list[dict[str, Any]]:
    user = fields.get("username", "alice")
    activity = fields.get("activity", "")
    return [
        record(
            number,
            source_lfn=f"/store/temp/user/{user}.abc/{activity}_{number}",
            destination_lfn=f"/store/user/{user}/{activity}_{number}",
            **fields,
        )
        for number in range(count)
    ]


def test_a_users_limit_is_his_alone(conn: Connection, add: Add, step: int) -> None:
    add(*files(20), *files(20, username="bob"))
    put_policy(conn, None, None, {"max_files_in_flight": 3}, "ops", username="alice")
    cycle(conn, step)
    assert in_flight(conn) == {"alice": 3, "bob": 20}
    cycle(conn, step, "again")
    assert in_flight(conn) == {"alice": 3, "bob": 20}
    assert_audited(conn)


def test_an_activity_at_its_limit_does_not_hold_back_another(conn: Connection, add: Add, step: int) -> None:
    add(*files(30, activity="Bulk"), *files(5, activity="Express"))
    put_policy(conn, None, None, {"max_files_in_flight": 2}, "ops", activity="Bulk")
    put_policy(conn, None, None, {"max_files_in_flight": 10}, "ops")
    cycle(conn, step)
    cycle(conn, step, "again")
    rows = conn.execute("SELECT activity, count(*) FROM transfer WHERE state = 'ACQUIRED' GROUP BY 1")
    assert dict(rows.fetchall()) == {"Bulk": 2, "Express": 5}


def test_bytes_in_flight(conn: Connection, add: Add, step: int) -> None:
    add(*(file | {"size_bytes": 100} for file in files(10)))
    put_policy(conn, None, "T2_CH_CERN", {"max_bytes_in_flight": 350}, "ops")
    cycle(conn, step)
    assert in_flight(conn) == {"alice": 3}
    cycle(conn, step, "again")
    assert in_flight(conn) == {"alice": 3}


def test_a_file_larger_than_the_limit_goes_alone(conn: Connection, add: Add, step: int) -> None:
    add(*(file | {"size_bytes": 1000} for file in files(2)))
    put_policy(conn, None, None, {"max_bytes_in_flight": 10}, "ops")
    cycle(conn, step)
    assert in_flight(conn) == {"alice": 1}


def test_a_paused_user_waits_and_the_cycle_says_why(conn: Connection, add: Add, step: int) -> None:
    add(*files(2), *files(3, username="bob"))
    restrict(conn, Mode.PAUSE, Area(username="alice"), reason="too many small files", by="ops")
    collected, _ = cycle(conn, step)
    assert in_flight(conn) == {"bob": 3}
    assert held(conn) == ["alice: paused by ops: too many small files"]
    assert collected.counts["held_files"] == 2


def test_a_paused_site_is_held_at_both_ends(conn: Connection, add: Add, step: int) -> None:
    add(record(1), record(2, source="T2_US_MIT", destination="T2_IT_Bari"), record(3, source="T2_US_MIT"))
    restrict(conn, Mode.PAUSE, Area(site="T2_IT_Bari"), reason="downtime", by="ops")
    collected, _ = cycle(conn, step)
    assert states(conn) == {"ACQUIRED": 1, "NEW": 2}
    assert collected.counts["held_links"] == 2
    assert held(conn) == ["paused by ops: downtime"] * 2


@pytest.mark.parametrize(("identity", "waiting"), [("alice", 2), ("bob", 0), ("service", 0)])
def test_a_held_identity_holds_only_files_that_travel_in_its_name(
    conn: Connection, add: Add, step: int, identity: str, waiting: int
) -> None:
    add(*files(2), record(9, vo_group="uscms", vo_role="production"))
    put_policy(conn, None, None, {"credential": "user"}, "ops")
    hold(conn, "", [identity], reason="no credential", wait_s=600)
    cycle(conn, step)
    assert in_flight(conn)["alice"] == 3 - waiting
    assert len(held(conn)) == bool(waiting)
    identities = conn.execute("SELECT DISTINCT identity FROM fts_job ORDER BY 1").fetchall()
    assert ("alice+uscms+production",) in identities


def test_a_held_identity_at_the_head_does_not_block_the_queue(conn: Connection, add: Add, step: int) -> None:
    add(*files(50), record(99, vo_group="uscms"))
    put_policy(conn, None, None, {"credential": "user", "max_files_in_flight": 5}, "ops")
    hold(conn, "", ["alice"], reason="no credential", wait_s=600)
    cycle(conn, step)
    rows = conn.execute("SELECT identity FROM fts_job").fetchall()
    assert rows == [("alice+uscms",)]


def test_a_file_without_a_name_fails_and_nobody_else_does(conn: Connection, add: Add, step: int) -> None:
    rule = Rule(match="/+store/user/(alice/.*)", result="davs://cern:443/$1")
    protocol = Protocol(name="WebDAV", to_pfn=(rule,), write=1)
    put_storages(conn, [(Storage(site="T2_CH_CERN", kind="tfc", protocols=(protocol,)), "test")], "ops")
    add(*files(2), *files(3, username="bob"))
    _, grouped = cycle(conn, step)
    assert states(conn) == {"ACQUIRED": 2, "FAILED": 3}
    reasons = conn.execute(
        "SELECT DISTINCT failure_category, regexp_replace(failure_reason, '_\\d', '_N'), attempt"
        " FROM transfer WHERE state = 'FAILED'"
    ).fetchall()
    assert reasons == [("name", "no rule of T2_CH_CERN matches /store/user/bob/_N (protocol WebDAV)", 0)]
    assert "3 files failed: no rule of T2_CH_CERN" in grouped.sentence
    assert_audited(conn)


def test_jobs_keep_the_names_that_they_were_planned_with(conn: Connection, add: Add, step: int) -> None:
    add(record(1))
    cycle(conn, step)
    put_sites(conn, {"T2_CH_CERN": "davs://elsewhere:443"}, "ops")
    (sid,) = conn.execute("SELECT sid FROM fts_job").fetchone() or (None,)
    (job,) = jobs_to_submit(conn, [sid])
    assert (
        job.files[0].destination_url == "davs://t2-ch-cern.sandbox.test:8443/store/user/alice/mc/out_1.root"
    )
    assert job.files[0].destination_lfn == "/store/user/alice/mc/out_1.root"


def test_a_long_queue_on_one_of_many_links_fills_the_cycle(
    conn: Connection, add: Add, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rooms begin small, and grow for who needs more; what is read stays bounded by what is taken."""
    monkeypatch.setattr("asyncstageout.steps.group.FIRST_ROOM", 2)
    add(*files(100), *(record(number, source="T2_US_MIT", username="bob") for number in range(3)))
    group(conn, open_cycle(conn, "d", "r", CycleParams(limit=3)), step_run=step)
    assert in_flight(conn).keys() == {"alice", "bob"}
    group(conn, open_cycle(conn, "d", "next", CycleParams(limit=60)), step_run=step)
    assert sum(in_flight(conn).values()) == 63
    group(conn, open_cycle(conn, "d", "last", CycleParams()), step_run=step)
    assert states(conn) == {"ACQUIRED": 103}
