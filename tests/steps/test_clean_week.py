"""A week of files that arrive, fail, are killed, sent again and written anew elsewhere: what is left of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from asyncstageout.catalogue.audit import audit
from asyncstageout.catalogue.crab import (
    Conflict,
    PublicationWord,
    Said,
    insert_file,
    send_again,
    tell_publication,
)
from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.kills import kill
from asyncstageout.catalogue.retries_by_people import retry_files
from asyncstageout.catalogue.storages import put_storages
from asyncstageout.core.crab import OWN_WORKER, Reinjection
from asyncstageout.core.requests import TransferRequest
from asyncstageout.core.selections import Selection
from asyncstageout.core.states import PublicationState, TransferState
from asyncstageout.core.storages.model import Storage
from asyncstageout.core.storages.storage_json import read_storage_json
from asyncstageout.core.storages.tfc import read_tfc
from asyncstageout.sandbox.sites.names import site_host
from fixtures.catalogue import record
from fixtures.cleaning import Temp, end, outcomes

SITES = ("T2_IT_Bari", "T1_DE_KIT", "T2_US_MIT")
FILES_A_DAY = 12
OUTCOMES = (TransferState.DONE, TransferState.DONE, TransferState.FAILED, TransferState.RETRY)
DAY = timedelta(days=1)


def storage_of(site: str, random: Random) -> Storage:
    """Describe a site in one of the ways in which sites do that."""
    root = f"davs://{site_host(site)}:8443"
    rules = [
        ("/+store/(.*)", f"{root}/store/$1"),
        ("/+(.*)", f"{root}/$1"),
        ("/+store/temp/(.*)", f"{root}/store/temp/$1"),
    ]
    match, result = random.choice(rules)
    others = ("/+(.*)", f"{root}/$1")
    if random.random() < 0.5:
        lines = "".join(
            f'<lfn-to-pfn protocol="w" path-match="{m}" result="{r}"/>' for m, r in ((match, result), others)
        )
        return read_tfc(f"<storage-mapping>{lines}</storage-mapping>".encode(), site)
    ways = f'[{{"lfn": "{match}", "pfn": "{result}"}}, {{"lfn": "{others[0]}", "pfn": "{others[1]}"}}]'
    text = (
        f'[{{"site": "{site}", "protocols": [{{"protocol": "w", "access": "global-rw", "rules": {ways}}}]}}]'
    )
    return read_storage_json(text.encode())[0]


@dataclass
class World:
    """Jobs, users and operators."""

    temp: Temp
    random: Random
    numbers: Any = field(default_factory=lambda: count(1))
    requests: list[dict[str, Any]] = field(default_factory=list)

    def arrive(self) -> None:
        for _ in range(FILES_A_DAY):
            request = record(next(self.numbers), source=self.random.choice(SITES))
            self.temp.put(request)
            self.requests.append(request)
            said = Said(1, publish=self.random.random() < 0.5)
            insert_file(
                self.temp.conn, TransferRequest.model_validate(request), said, worker=OWN_WORKER,
                step_run=self.temp.step,
            )  # fmt: skip

    def travel(self) -> None:
        conn = self.temp.conn
        conn.execute("UPDATE transfer SET due_at = now() WHERE state IN ('NEW', 'RETRY')")
        self.temp.submitted()
        for (number,) in conn.execute(
            "SELECT id FROM transfer WHERE state = 'SUBMITTED' ORDER BY id"
        ).fetchall():
            if self.random.random() < 0.8:
                end(conn, self.temp.step, self.random.choice(OUTCOMES), ids=[number])

    def publish(self) -> None:
        waiting = self.temp.conn.execute(
            "SELECT request_id FROM transfer WHERE state = 'DONE' AND publication = 'NEW' ORDER BY id"
        ).fetchall()
        words = [
            PublicationWord(one, self.random.choice([PublicationState.DONE, PublicationState.FAILED]))
            for (one,) in waiting
            if self.random.random() < 0.7
        ]
        tell_publication(self.temp.conn, OWN_WORKER, words, None, self.temp.step)

    def people_act(self) -> None:
        some = Selection(ids=tuple(self.random.randint(1, len(self.requests)) for _ in range(5)))
        kill(self.temp.conn, some, None, comment="", step_run=self.temp.step)
        retry_files(self.temp.conn, some, None, comment="", step_run=self.temp.step, killed_too=True)

    def jobs_run_again(self, day: int) -> None:
        """They write their output anew, here or at another site, and ask for it."""
        for request in self.random.sample(self.requests, 4):
            anew = request | {
                "source": self.random.choice(SITES),
                "size_bytes": request["size_bytes"] + 10_000,
            }
            path = self.temp.put(anew, age=timedelta(0))
            try:
                asked = anew | {"job_retry_count": day}
                send_again(
                    self.temp.conn, Reinjection.model_validate(asked), Said(day + 1), step_run=self.temp.step
                )
            except Conflict:
                path.unlink()  # the job waits; that the copy is away would be the transfer's trouble
                self.temp.put(request)
            else:
                request.update(anew)

    def clean(self) -> None:
        self.temp.make_due()
        self.temp.delete(*SITES)

    def copies(self) -> set[Path]:
        return {path for path in self.temp.sites.root.rglob("store/temp/**/*") if path.is_file()}

    def assert_sources_are_there(self) -> None:
        live = self.temp.conn.execute(
            "SELECT source, source_lfn FROM transfer WHERE ended_at IS NULL"
        ).fetchall()
        assert {self.temp.sites.root / source / lfn.lstrip("/") for source, lfn in live} <= self.copies()


def test_after_a_week_no_temporary_copy_of_a_file_that_has_ended_is_left(temp: Temp) -> None:
    random = Random(20261122)
    put_storages(temp.conn, [(storage_of(site, random), "test") for site in SITES], "test")
    world = World(temp, random)
    for day in range(1, 8):
        world.arrive()
        world.travel()
        world.people_act()
        world.publish()
        world.clean()
        world.assert_sources_are_there()
        world.jobs_run_again(day)
        world.assert_sources_are_there()
        temp.pass_time(DAY)
        move_finished(temp.conn)
    world.travel()
    for state in (TransferState.DONE, TransferState.FAILED):
        end(temp.conn, temp.step, state)
    kill(temp.conn, Selection(username="alice"), None, comment="", step_run=temp.step)
    world.publish()
    temp.conn.execute("UPDATE cleaning SET awaits_publication = false")
    temp.pass_time(8 * DAY)
    world.clean()
    left = temp.conn.execute("SELECT DISTINCT state::text FROM transfer WHERE ended_at IS NULL").fetchall()
    assert left == []
    assert world.copies() == set()
    again = temp.conn.execute(
        "SELECT count(*) FROM transfer_event WHERE reason LIKE 'sent again by%'"
    ).fetchone()
    assert outcomes(temp.conn)["DELETED"] > len(world.requests), "some had left copies at two sites"
    assert again is not None
    assert again[0] > 10
    assert temp.conn.execute("SELECT count(*) FROM cleaning").fetchone() == (0,)
    assert {one.name: one.samples for one in audit(temp.conn) if one.violations} == {}
