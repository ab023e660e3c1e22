"""From arrived files to DBS: every wanted file is there exactly once, whatever DBS answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from asyncstageout.catalogue.audit import audit
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.crab import (
    Conflict,
    PublicationWord,
    Word,
    acquire_publication,
    send_again,
    tell_publication,
    tell_transfers,
)
from asyncstageout.catalogue.crab import Said as CrabSaid
from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.kills import kill
from asyncstageout.catalogue.publication import (
    blocks_of_task,
    retry_publication,
    set_publication,
    task_publication,
)
from asyncstageout.catalogue.repairs import publish_anew
from asyncstageout.catalogue.step_runs import Actor, start_step
from asyncstageout.core.blocks import PublicationSettings
from asyncstageout.core.crab import Reinjection
from asyncstageout.core.selections import Selection
from asyncstageout.core.states import PublicationState, TransferState
from asyncstageout.steps.publication_summary import PublicationNeedsPeople, summarise
from asyncstageout.steps.publish import PublishingStopped, publish
from fixtures.catalogue import record
from fixtures.publication import AT_ONCE, DATASET, Press, body, lfn

TASK = "261122_alice_task"
BULK = ".*/bulkblocks"


@pytest.fixture
def press(press: Press) -> Any:
    """A press whose catalogue is whole in the end."""
    yield press
    assert {one.name: one.samples for one in audit(press.conn) if one.violations} == {}


def settle_all(press: Press, *, runs: int = 20) -> None:
    """Run until nothing is under way."""
    for _ in range(runs):
        press.run()
        if not {"OPEN", "CLOSED"} & press.blocks().keys():
            return
    raise AssertionError(press.conn.execute("SELECT name, state, reason FROM block").fetchall())


# --- as it goes ---


def test_what_has_arrived_with_metadata_is_published(press: Press) -> None:
    press.ready(0, 1, 2)
    (summary,) = press.run()
    assert summary.sentence == "DBS took 1 blocks with 3 files"
    assert press.publications() == {"DONE": 3}
    (name,) = set(press.at_dbs().values())
    events = press.conn.execute(
        "SELECT from_state, to_state, subject, count(*) FROM file_event GROUP BY 1, 2, 3 ORDER BY 1 DESC"
    ).fetchall()
    assert events == [("NEW", "ACQUIRED", name, 3), ("ACQUIRED", "DONE", name, 3)]
    block = press.instances.client("dbs_default").block(name)
    assert block is not None
    assert (block.origin_site, block.file_count, block.is_open) == ("T2_CH_CERN", 3, False)
    assert press.run() == []


def test_full_blocks_go_at_once_and_the_rest_waits_for_more(press: Press) -> None:
    press.instances.rules = PublicationSettings(block_files=10)
    press.ready(*range(25))
    summary, shards = press.assemble()
    assert (summary.counts["closed_blocks"], press.blocks()) == (2, {"CLOSED": 2, "OPEN": 1})
    press.publish(*shards)
    press.ready(*range(25, 30))
    assert press.assemble()[0].counts["closed_blocks"] == 1
    assert press.publications() == {"DONE": 20, "ACQUIRED": 10}


def test_the_end_of_its_task_closes_a_block(press: Press) -> None:
    press.instances.rules = PublicationSettings()
    press.ready(0)
    assert press.assemble()[1] == []
    set_publication(press.conn, TASK, None, is_complete=True)
    settle_all(press)
    assert press.publications() == {"DONE": 1}


def test_datasets_sites_and_instances_have_blocks_of_their_own(press: Press) -> None:
    press.arrive(0)
    press.arrive(1, destination="T2_US_MIT")
    press.describe(0, 1)
    press.arrive(2)
    press.describe(2, outdataset=DATASET.replace("test", "other"))
    press.assemble()
    set_publication(press.conn, TASK, None, dbs="dbs_other")
    press.ready(3)
    press.assemble()
    assert press.conn.execute("SELECT count(*), count(DISTINCT dbs) FROM block").fetchone() == (4, 2)


# --- metadata ---


def test_a_file_waits_for_its_metadata_and_is_not_looked_at_until_they_come(press: Press) -> None:
    press.arrive(0, 1)
    assert press.assemble()[0].counts["ready_files"] == 0
    due = press.conn.execute("SELECT count(*) FROM transfer WHERE due_at > now() + interval '2 days'")
    assert due.fetchone() == (2,)
    press.describe(0, 1)
    settle_all(press)
    assert press.publications() == {"DONE": 2}


def test_without_metadata_a_file_is_given_up_until_they_come(press: Press) -> None:
    press.arrive(0)
    press.instances.rules = replace(AT_ONCE, metadata_wait_s=0)
    press.assemble()
    assert press.publications() == {"FAILED": 1}
    assert press.reasons() == {"nobody said what is in it (PUT /file-metadata)"}
    move_finished(press.conn, keep_done_s=-1)
    press.describe(0)
    settle_all(press)
    assert press.publications() == {"DONE": 1}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"runlumi": {"1": {"x": "1"}}}, "metadata: runlumi: lumi section of run 1 'x' is no whole number"),
        ({"filesize": 7}, "metadata: filesize: they say 7, the file has 1000"),
        ({"outdataset": DATASET.replace("alice", "bob")}, "metadata: outdataset: .* is not his"),
        ({"lfn": lfn(9)}, "metadata: lfn: they are of .*out_9.root, the file is .*out_0.root"),
    ],
)
def test_metadata_that_do_not_fit_fail_their_file_and_no_other(
    press: Press, changes: dict[str, Any], reason: str
) -> None:
    press.ready(1)
    press.ready(0, **changes)
    settle_all(press)
    assert press.publications() == {"DONE": 1, "FAILED": 1}
    (said,) = press.reasons()
    assert said is not None
    assert re.match(reason, said), said
    press.describe(0)
    settle_all(press)
    assert press.publications() == {"DONE": 2}


def test_metadata_from_before_this_version_are_read_now(press: Press) -> None:
    press.ready(0)
    press.ready(1, inevents=-1)
    press.conn.execute(
        "UPDATE file_metadata SET dataset = NULL, lfn = NULL, size_bytes = NULL, adler32 = NULL, lumis = NULL,"
        " events = NULL, payload_bytes = NULL, problem = NULL"
    )
    settle_all(press)
    assert press.publications() == {"DONE": 1, "FAILED": 1}


def test_what_is_being_published_is_not_described_anew(press: Press) -> None:
    press.ready(0)
    press.assemble()
    (kept,) = press.describe(0, inevents=7)
    assert (kept.outcome, kept.reason) == ("refused", "the file is being published")


def test_logs_are_not_published(press: Press) -> None:
    press.arrive(0)
    press.conn.execute("UPDATE transfer SET type = 'log'")
    press.assemble()
    assert press.publications() == {"NOT_REQUIRED": 1}


# --- DBS does not say, or says no ---


@pytest.mark.parametrize("action", ["lost_reply", "reset"])
def test_no_answer_publishes_nothing_twice(press: Press, action: str) -> None:
    press.ready(0, 1)
    press.set_faults(api=[{"action": action, "path": BULK, "count": 1}])
    press.run()
    assert press.publications() == ({"DONE": 2} if action == "lost_reply" else {"ACQUIRED": 2})
    settle_all(press)
    assert press.publications() == {"DONE": 2}
    assert len(press.at_dbs()) == 2


def test_a_file_that_is_there_already_is_published(press: Press) -> None:
    """Whoever put it there: the LFN is the file."""
    elsewhere = f"{DATASET}#{uuid4()}"
    press.insert(press.instances.client("dbs_default"), elsewhere, 1)
    press.ready(0, 1, 2)
    settle_all(press)
    assert press.publications() == {"DONE": 3}
    there = press.at_dbs()
    assert there[lfn(1)] == elsewhere
    assert there[lfn(0)] == there[lfn(2)] != elsewhere


def test_a_file_that_is_there_with_other_bytes_fails_alone(press: Press) -> None:
    press.insert(press.instances.client("dbs_default"), f"{DATASET}#{uuid4()}", 1, size_bytes=7)
    press.ready(0, 1, 2)
    settle_all(press)
    assert press.publications() == {"DONE": 2, "FAILED": 1}
    (reason,) = press.reasons()
    assert reason is not None
    assert reason.endswith("with 7 bytes, not 1,001; it never changes one")


def test_a_block_that_is_too_large_is_halved(press: Press) -> None:
    press.ready(*range(8))
    press.set_faults(api=[{"action": "status", "path": BULK, "status": 413, "over_bytes": 2500}])
    settle_all(press)
    assert press.publications() == {"DONE": 8}
    assert press.blocks() == {"PUBLISHED": 4, "SPLIT": 3}


def test_a_single_file_that_is_too_large_fails_with_that_reason(press: Press) -> None:
    press.ready(0, 1, 2)
    press.ready(3, runlumi={"1": {str(lumi): "1" for lumi in range(100)}})
    press.set_faults(api=[{"action": "status", "path": BULK, "status": 413, "over_bytes": 4000}])
    settle_all(press)
    assert press.publications() == {"DONE": 3, "FAILED": 1}
    (reason,) = press.reasons()
    assert reason is not None
    assert "answered 413" in reason


REFUSAL = json.dumps([{"error": {"code": 109, "function": "f", "message": "bad", "reason": "no"}}])
REFUSES_ALL = {"action": "status", "path": BULK, "status": 400, "body": REFUSAL}


def test_one_file_that_dbs_refuses_stops_no_other(press: Press) -> None:
    """It is known only by what DBS says of the blocks in which it is."""
    press.instances.rules = replace(AT_ONCE, block_files=16)
    press.ready(0)
    settle_all(press)
    press.ready(*range(1, 15))
    press.ready(15, runlumi={"1": {str(lumi): "1" for lumi in range(500)}})
    press.set_faults(api=[REFUSES_ALL | {"over_bytes": 20_000}])
    settle_all(press)
    assert press.publications() == {"DONE": 15, "FAILED": 1}
    posts = press.conn.execute("SELECT count(*) FROM block").fetchone()
    assert posts is not None
    assert posts[0] <= 10


def test_what_is_wrong_with_all_files_of_a_dataset_costs_few_posts_and_waits_for_who_mends_it(
    press: Press,
) -> None:
    press.instances.rules = replace(AT_ONCE, block_files=16)
    press.set_faults(api=[REFUSES_ALL])
    press.ready(*range(32))
    press.run()
    assert press.publications() == {"ACQUIRED": 32}
    blocks = press.conn.execute("SELECT count(*), max(tries) FROM block WHERE state = 'CLOSED'").fetchone()
    assert blocks is not None
    assert blocks[0] <= 7
    assert blocks[1] == 1
    press.set_faults()
    settle_all(press)
    assert press.publications() == {"DONE": 32}


def test_after_so_many_refusals_they_are_given_up_and_a_person_can_publish_them_again(press: Press) -> None:
    press.instances.rules = replace(AT_ONCE, max_tries=2)
    press.set_faults(api=[REFUSES_ALL])
    press.ready(0, 1)
    settle_all(press)
    assert press.publications() == {"FAILED": 2}
    assert all(reason and reason.startswith("given up after 2 refusals") for reason in press.reasons())
    press.set_faults()
    move_finished(press.conn, keep_done_s=-1)
    assert retry_publication(press.conn, TASK, ["alice"], comment="mended", step_run=press.step) == 2
    settle_all(press)
    assert press.publications() == {"DONE": 2}


def test_dbs_being_down_fails_nothing_and_is_asked_once(press: Press) -> None:
    press.instances.rules = replace(AT_ONCE, block_files=1)
    press.ready(*range(6))
    press.set_faults(api=[{"action": "status", "status": 503}])
    for _ in range(10):
        press.run()
    assert press.publications() == {"ACQUIRED": 6}
    assert press.conn.execute("SELECT max(tries), max(silences) FROM block").fetchone() == (0, 0)
    press.set_faults()
    settle_all(press)
    assert press.publications() == {"DONE": 6}


def test_who_is_not_let_in_needs_a_person(press: Press) -> None:
    press.ready(0)
    press.set_faults(api=[{"action": "status", "path": BULK, "status": 403}])
    with pytest.raises(PublishingStopped, match="Check the certificate"):
        press.run()
    row = press.conn.execute("SELECT state::text, tries, reason FROM block").fetchone()
    assert row is not None
    assert row[:2] == ("CLOSED", 0)
    press.set_faults()
    settle_all(press)


def test_a_block_about_which_dbs_is_silent_is_split_when_others_go(press: Press) -> None:
    press.instances.rules = replace(AT_ONCE, block_files=4)
    press.ready(*range(4))
    press.set_faults(api=[{"action": "reset", "path": BULK, "over_bytes": 2000}])
    press.run()
    press.run()
    assert press.blocks() == {"CLOSED": 1}  # so may be all others
    press.ready(4)
    settle_all(press)
    assert press.publications() == {"DONE": 5}
    assert press.blocks() == {"PUBLISHED": 3, "SPLIT": 1}


# --- parents ---


def with_parents(press: Press, *numbers: int) -> str:
    """Let alice's files have parents that only the global DBS has; return their block."""
    parents = [900 + number for number in numbers]
    block = f"/Input/bob-raw-0a1b/USER#{uuid4()}"
    press.insert(press.elsewhere, block, *parents)
    for number, parent in zip(numbers, parents, strict=True):
        press.ready(number, parents=[lfn(parent)])
    set_publication(press.conn, TASK, None, with_parents=True)
    return block


def test_input_blocks_are_migrated_first(press: Press) -> None:
    block = with_parents(press, 0, 1)
    press.run()
    row = press.conn.execute("SELECT reason, tries FROM block").fetchone()
    assert row == (f"waits for 1 input block: {block}", 0)
    settle_all(press)
    assert press.publications() == {"DONE": 2}
    assert press.instances.client("dbs_default").block_exists(block)
    rows = press.conn.execute("SELECT block_name, state FROM dbs_migration").fetchall()
    assert rows == [(block, "DONE")]


def test_parents_that_nobody_knows_are_left_out_and_counted(press: Press) -> None:
    press.ready(0, parents=[lfn(999)])
    set_publication(press.conn, TASK, None, with_parents=True)
    settle_all(press)
    assert press.publications() == {"DONE": 1}
    (block,) = blocks_of_task(press.conn, TASK, None, limit=9)
    assert block["parents_unknown"] == 1


def test_without_the_wish_parents_are_not_looked_for(press: Press) -> None:
    press.ready(0, parents=[lfn(999)])
    settle_all(press)
    assert press.conn.execute("SELECT parent_blocks, parents_unknown FROM block").fetchone() == (None, [])


def test_a_migration_that_fails_for_good_fails_its_files_with_the_reason(press: Press) -> None:
    block = with_parents(press, 0)
    press.instances.rules = replace(AT_ONCE, max_tries=2)
    press.set_faults(migrations=[{"block": "*", "failures": None}])
    settle_all(press)
    assert press.publications() == {"FAILED": 1}
    assert press.reasons() == {f"input block {block} cannot be migrated: failed for good, or was cancelled"}
    press.set_faults()
    assert retry_publication(press.conn, TASK, None, comment="", step_run=press.step) == 1
    settle_all(press)
    assert press.publications() == {"DONE": 1}


def test_the_input_says_what_kind_of_data_it_is(press: Press) -> None:
    name = "/Input/bob-raw-0a1b/USER"
    press.insert(press.elsewhere, f"{name}#{uuid4()}", 900)
    press.ready(0)
    set_publication(press.conn, TASK, None, input_dataset=name)
    settle_all(press)
    assert press.publications() == {"DONE": 1}
    set_publication(press.conn, TASK, None, input_dataset="/No/such-one-0a1b/USER")
    press.ready(1)
    settle_all(press)
    assert press.reasons() == {"no DBS knows its input dataset /No/such-one-0a1b/USER"}


# --- several at once, and others ---


def test_two_runs_at_once_tell_each_block_once(press: Press, catalogue_url: str) -> None:
    press.instances.rules = replace(AT_ONCE, block_files=2)
    press.ready(*range(12))
    _, shards = press.assemble()
    ids = [one for shard in shards for one in shard.block_ids]
    with connect(catalogue_url) as other, ThreadPoolExecutor(2) as pool:
        running = [
            pool.submit(publish, conn, press.instances, ids, step_run=press.step)
            for conn in (press.conn, other)
        ]
        counts = [one.result().counts.get("published_blocks", 0) for one in running]
    assert sum(counts) == 6
    assert press.publications() == {"DONE": 12}


def test_a_killed_tasks_arrived_files_are_published(press: Press) -> None:
    press.ready(0)
    press.arrive(1)
    press.assemble()
    kill(press.conn, Selection(task=TASK), None, comment="", step_run=press.step)
    press.describe(1)
    settle_all(press)
    assert press.publications() == {"DONE": 2}


def crab(press: Press, *ids: str, publish: int = 1) -> None:
    press.conn.execute(
        "INSERT INTO crab_record (transfer_id, start_time, publish) SELECT id, 1, %s FROM transfer"
        " WHERE request_id = ANY(%s)",
        (publish, list(ids)),
    )


def test_files_of_crabs_publishers_are_theirs(press: Press) -> None:
    ids = press.arrive(0, 1, 2)
    crab(press, *ids)
    press.describe(0, 1, 2)
    tell_transfers(press.conn, "schedd", [Word(ids[0], TransferState.DONE)], None, press.step)
    tell_transfers(press.conn, "asyncstageout", [Word(ids[1], TransferState.DONE)], None, press.step)
    settle_all(press)
    assert press.publications() == {"NEW": 1, "DONE": 2}
    assert acquire_publication(press.conn, "asyncstageout", None, press.step) == 0
    assert acquire_publication(press.conn, "schedd", None, press.step) == 1
    (name,) = set(press.at_dbs().values())
    rows = press.conn.execute("SELECT publisher, dbs_blockname FROM crab_record ORDER BY transfer_id")
    assert rows.fetchall() == [("schedd", None), ("asyncstageout", name), ("asyncstageout", name)]


def test_crab_says_when_its_metadata_are_there(press: Press) -> None:
    """The hand-shake: inserted without the flag, described, and only then to be published."""
    (file,) = press.arrive(0, publish=False)
    crab(press, file, publish=0)
    tell_transfers(press.conn, "asyncstageout", [Word(file, TransferState.DONE)], None, press.step)
    press.describe(0)
    assert press.run() == []
    words = [PublicationWord(file, PublicationState.NEW)]
    tell_publication(press.conn, "asyncstageout", words, None, press.step, publish=True)
    settle_all(press)
    assert press.publications() == {"DONE": 1}
    for state in (PublicationState.FAILED, PublicationState.ACQUIRED):
        said = tell_publication(press.conn, "asyncstageout", [PublicationWord(file, state)], None, press.step)
        assert said == []


def again(number: int, retry: int) -> Reinjection:
    wanted = record(number)
    names = ("task", "username", "source", "source_lfn", "size_bytes")
    return Reinjection(**{name: wanted[name] for name in names}, job_retry_count=retry)


def test_a_job_retry_takes_its_file_out_of_an_open_block_and_not_out_of_a_closed_one(press: Press) -> None:
    press.instances.rules = PublicationSettings()
    ids = press.arrive(0, 1)
    crab(press, *ids)
    press.describe(0, 1)
    press.assemble()
    send_again(press.conn, again(0, 1), CrabSaid(2, publish=True), step_run=press.step)
    assert press.publications() == {"NEW": 1, "ACQUIRED": 1}
    set_publication(press.conn, TASK, None, is_complete=True)
    press.assemble()
    with pytest.raises(Conflict, match="it is being published"):
        send_again(press.conn, again(1, 1), CrabSaid(2, publish=True), step_run=press.step)
    settle_all(press)


def test_a_file_without_a_living_block_is_published_anew(press: Press) -> None:
    press.ready(0, 1)
    press.assemble()
    press.conn.execute("DELETE FROM block")
    assert publish_anew(press.conn, press.step) == 2
    assert publish_anew(press.conn, press.step) == 0
    settle_all(press)
    assert press.publications() == {"DONE": 2}


# --- for people ---


def test_a_task_says_how_far_it_is_and_why_not_farther(press: Press) -> None:
    press.ready(0)
    settle_all(press)
    press.ready(1, filesize=7)
    press.arrive(2)
    press.assemble()
    press.ready(3)
    press.set_faults(api=[{"action": "status", "status": 503}])
    press.run()
    found = task_publication(press.conn, TASK, ["alice"])
    assert found is not None
    assert found["files"] == {"DONE": 1, "FAILED": 1, "NEW": 1, "ACQUIRED": 1}
    assert found["blocks"] == {"PUBLISHED": 1, "CLOSED": 1}
    assert found["waiting_files"] == 1
    assert [one["files"] for one in found["failures"]] == [1]
    assert "answered 503" in found["waiting"][0]["reason"]
    assert task_publication(press.conn, TASK, ["bob"]) is None
    assert not set_publication(press.conn, TASK, ["bob"], is_complete=True)
    assert retry_publication(press.conn, TASK, ["bob"], comment="", step_run=press.step) == 0


def in_run(press: Press, body: Callable[[int], Any]) -> Any:
    step = start_step(press.conn, Actor("publish", "airflow", "stageout_publish", "r"))
    return body(step)


def test_a_run_is_red_for_what_failed_and_for_what_dbs_does_not_take(press: Press) -> None:
    said = summarise(press.conn, dag_id="stageout_publish", run_id="r")
    assert said.sentence == "0 files in 0 blocks are published"
    press.instances.rules = replace(AT_ONCE, max_tries=1)
    press.set_faults(api=[REFUSES_ALL])
    press.ready(0)
    _, shards = press.assemble()
    in_run(press, lambda step: publish(press.conn, press.instances, shards[0].block_ids, step_run=step))
    with pytest.raises(PublicationNeedsPeople, match=r"block .* failed: given up.*runbooks/publication.md"):
        summarise(press.conn, dag_id="stageout_publish", run_id="r")
    press.ready(1)
    press.assemble()
    press.conn.execute("UPDATE block SET closed_at = now() - interval '61 min' WHERE state = 'CLOSED'")
    with pytest.raises(PublicationNeedsPeople, match="dbs_default has not taken 1 blocks"):
        summarise(press.conn, dag_id="stageout_publish", run_id="another")


def test_metadata_of_the_wrong_shape_are_said_at_the_door(press: Press) -> None:
    press.arrive(0)
    (kept,) = press.describe(0, swversion=None)
    assert kept.outcome == "stored"
    assert kept.reason == "swversion: Input should be a valid string"
    assert body(0)["outdataset"] == DATASET
