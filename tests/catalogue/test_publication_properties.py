"""Any interleaving of arrivals, metadata, publishers and what a DBS may answer: each file is in it once, or has a reason.

Hypothesis plays the house as in :mod:`catalogue.test_properties`; the DBS is a model that takes blocks, loses its
answer or itself, refuses what is large or bad, and is slow: what it was told without an answer may come to be
much later. After each step the whole audit holds. In the end, with a DBS that works, all is settled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from psycopg import Connection

from asyncstageout.catalogue.audit import audit
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.intake import add_transfers
from asyncstageout.catalogue.publication import retry_publication, set_publication
from asyncstageout.catalogue.repairs import publish_anew
from asyncstageout.catalogue.step_runs import Actor, start_step
from asyncstageout.clients.dbs_errors import (
    BlockExists,
    BlockRefused,
    BlockTooLarge,
    DBSError,
    DBSNotAuthorised,
    DBSRace,
    DBSUnavailable,
    DBSUnreachable,
    FilesNotTaken,
)
from asyncstageout.core.blocks import PublicationSettings
from asyncstageout.core.dbs_answers import DBSFile
from asyncstageout.core.requests import read_requests
from asyncstageout.steps.assemble import assemble
from asyncstageout.steps.publish import PublishingStopped, publish
from fixtures.catalogue import record
from fixtures.publication import describe, land, lfn

LONG = bool(os.environ.get("ASO_LONG_TESTS"))
PLAY = settings(
    max_examples=300 if LONG else 12,
    stateful_step_count=60 if LONG else 20,
    derandomize=not LONG,
    deadline=None,
    database=None,
    phases=tuple(Phase) if LONG else (Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
FILES = 12
BAD = frozenset({3, 7})
"""Files that this DBS never takes."""
SETTINGS = PublicationSettings(
    block_files=4, first_after_s=0, close_after_s=0, max_tries=2, metadata_wait_s=10**6
)
TASK = "261122_alice_task"

WHERE = ("dbs", "POST /bulkblocks", 400)
ANSWERS = (
    "take",
    "take",
    "take",
    "lose the answer",
    "be slow",
    "lose",
    "be down",
    "race",
    "be strict",
    "shut",
)


@dataclass
class ModelDBS:
    """What a DBS has: blocks, whole or not at all. LFNs and names are unique."""

    files_there: dict[str, DBSFile]
    slow: list[dict[str, Any]]
    """Told without an answer; to be done some day."""
    answers: list[str]
    """To the next POSTs; then it takes what it can."""

    def insert_block(self, text: bytes) -> None:
        body = json.loads(text)
        answer = self.answers.pop() if self.answers else "take"
        match answer:
            case "lose":
                raise DBSUnreachable(*WHERE[:2])
            case "be slow":
                self.slow.append(body)
                raise DBSUnreachable(*WHERE[:2])
            case "be down":
                raise DBSUnavailable(*WHERE[:2], 503, maybe_delivered=False)
            case "race":
                raise DBSRace(*WHERE)
            case "shut":
                raise DBSNotAuthorised(*WHERE[:2], 403)
            case "be strict" if len(body["files"]) > 1:
                raise BlockTooLarge(*WHERE[:2], 413)
        self._take(body)
        if answer == "lose the answer":
            raise DBSUnreachable(*WHERE[:2])

    def _take(self, body: dict[str, Any]) -> None:
        name = body["block"]["block_name"]
        if any(file.block_name == name for file in self.files_there.values()):
            raise BlockExists(*WHERE)
        names = [file["logical_file_name"] for file in body["files"]]
        if any(lfn(bad) in names for bad in BAD):
            raise BlockRefused(*WHERE, f"bad: {name}")
        if set(names) & self.files_there.keys():
            raise FilesNotTaken(*WHERE)
        for file in body["files"]:
            there = DBSFile(
                file["logical_file_name"],
                name,
                name.partition("#")[0],
                file["file_size"],
                file["adler32"],
                True,
            )
            self.files_there[there.lfn] = there

    def catch_up(self) -> None:
        """Do what was told long ago."""
        while self.slow:
            with suppress(DBSError):
                self._take(self.slow.pop())

    def time_passes(self) -> None:
        """An insertion of one file is over by the time at which its block may be given up."""
        waiting, self.slow = self.slow, []
        for body in waiting:
            if len(body["files"]) > 1:
                self.slow.append(body)
            else:
                with suppress(DBSError):
                    self._take(body)

    def files(self, lfns: Iterable[str]) -> dict[str, DBSFile]:
        return {name: self.files_there[name] for name in lfns if name in self.files_there}

    def block_exists(self, name: str) -> bool:
        return any(file.block_name == name for file in self.files_there.values())


class Instances:
    def __init__(self, dbs: ModelDBS) -> None:
        self._dbs = dbs

    def settings(self, _dbs: str) -> PublicationSettings:
        return SETTINGS

    def client(self, _dbs: str) -> Any:
        return self._dbs

    def global_reader(self, _dbs: str) -> None:
        return None


class PublishingHouse(RuleBasedStateMachine):
    """A catalogue, a DBS, and everybody who works on them."""

    def __init__(self, one: Connection, other: Connection) -> None:
        super().__init__()
        self.one, self.other = one, other
        self.dbs = ModelDBS({}, [], [])
        self.instances = Instances(self.dbs)
        for table in (
            "file_metadata",
            "crab_record",
            "transfer",
            "transfer_history",
            "block",
            "dbs_migration",
        ):
            one.execute(f"TRUNCATE {table} CASCADE")
        for table in ("transfer_event", "file_event"):
            one.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
            one.execute(f"DELETE FROM {table}")
            one.execute(f"ALTER TABLE {table} ENABLE TRIGGER ALL")
        self.step = start_step(one, Actor(task_id="test", name="hypothesis"))

    numbers = st.lists(st.integers(0, FILES - 1), min_size=1, max_size=6, unique=True)

    @initialize()
    def some_files_are_there(self) -> None:
        self.arrive([0, 1, 2, 3])
        self.describe([0, 1, 2, 3])

    @rule(numbers=numbers)
    def arrive(self, numbers: list[int]) -> None:
        records = [record(n, publish=True, destination_lfn=lfn(n)) for n in numbers]
        add_transfers(self.one, read_requests(records)[0], self.step)
        land(self.one, self.step)

    @rule(numbers=numbers)
    def describe(self, numbers: list[int]) -> None:
        describe(self.one, self.step, *numbers)

    @rule(numbers=numbers, size=st.sampled_from([5, 1000]))
    def describe_anew(self, numbers: list[int], size: int) -> None:
        """Other metadata, perhaps wrong ones."""
        describe(self.one, self.step, *numbers, filesize=None, inevents=size)

    def _assemble(self, conn: Connection) -> list[int]:
        now = datetime.now(UTC) + timedelta(seconds=1)
        self.dbs.time_passes()
        conn.execute("UPDATE block SET due_at = now() WHERE state IN ('OPEN', 'CLOSED')")
        _, shards = assemble(conn, self.instances.settings, now=now, step_run=self.step)
        return [one for shard in shards for one in shard.block_ids]

    def _publish(self, conn: Connection, ids: list[int]) -> None:
        with suppress(PublishingStopped):
            publish(conn, cast("Any", self.instances), ids, step_run=self.step, threads=1)

    @rule(dies=st.booleans())
    def assembling(self, dies: bool) -> None:
        with self.one.transaction(force_rollback=dies):
            self._assemble(self.one)

    @rule(answers=st.lists(st.sampled_from(ANSWERS), max_size=6))
    def publishing(self, answers: list[str]) -> None:
        self.dbs.answers = answers
        self._publish(self.one, self._assemble(self.one))

    @rule(answers=st.lists(st.sampled_from(ANSWERS), max_size=6))
    def two_publish_at_once(self, answers: list[str]) -> None:
        """The second one does not know that the first is alive: its leases are over."""
        self.dbs.answers = answers
        ids = self._assemble(self.one)
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(self._publish, self.one, ids)
            self.other.execute("UPDATE block SET due_at = now() WHERE state = 'CLOSED'")
            second = pool.submit(self._publish, self.other, ids)
            for each in (first, second):
                each.result(timeout=60)

    @rule()
    def what_was_told_long_ago_is_done(self) -> None:
        self.dbs.catch_up()

    @rule()
    def a_person_tries_again(self) -> None:
        retry_publication(self.one, TASK, None, comment="again", step_run=self.step)

    @rule(is_complete=st.booleans())
    def the_task_ends_or_not(self, is_complete: bool) -> None:
        set_publication(self.one, TASK, None, is_complete=is_complete)

    @rule()
    def archive(self) -> None:
        move_finished(self.one, keep_done_s=-1)

    @rule()
    def reconcile(self) -> None:
        assert publish_anew(self.one, self.step) == 0

    @invariant()
    def audit_holds(self) -> None:
        assert {one.name: one.samples for one in audit(self.one) if one.violations} == {}

    @invariant()
    def what_is_done_is_there(self) -> None:
        rows = self.one.execute(
            "SELECT destination_lfn FROM (SELECT * FROM transfer UNION ALL SELECT * FROM transfer_history) t"
            " WHERE publication = 'DONE'"
        )
        assert {name for (name,) in rows} <= self.dbs.files_there.keys()

    def teardown(self) -> None:
        """With a DBS that works, every file ends: in it once, or with a reason."""
        self.dbs.answers = []
        self.dbs.catch_up()
        describe(self.one, self.step, *range(FILES))
        for _ in range(30):
            ids = self._assemble(self.one)
            if not ids:
                break
            self._publish(self.one, ids)
        rows = self.one.execute(
            "SELECT t.destination_lfn, t.publication::text, (SELECT reason FROM file_event e"
            " WHERE e.transfer_id = t.id AND kind = 'publication' ORDER BY id DESC LIMIT 1)"
            " FROM (SELECT * FROM transfer UNION ALL SELECT * FROM transfer_history) t"
        ).fetchall()
        bad = set(map(lfn, BAD))
        for name, publication, reason in rows:
            assert publication in ("DONE", "FAILED"), (name, publication, reason)
            assert (publication == "DONE") == (name in self.dbs.files_there), (name, publication, reason)
            assert publication == "DONE" or reason
            assert name not in bad or publication == "FAILED"
        self.audit_holds()


@pytest.mark.timeout(1800 if LONG else 300)
def test_whatever_dbs_answers_each_file_is_there_once_or_has_a_reason(
    conn: Connection, catalogue_url: str
) -> None:
    with connect(catalogue_url) as other:
        run_state_machine_as_test(lambda: PublishingHouse(conn, other), settings=PLAY)
