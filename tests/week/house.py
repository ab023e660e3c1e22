"""The house: its steps with their collaborators, one method a DAG, each step on record."""

from __future__ import annotations

import base64
import logging
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.cycles import CycleParams, open_cycle
from asyncstageout.catalogue.outbox import due_subscriptions
from asyncstageout.catalogue.sensing import staged_reports
from asyncstageout.catalogue.step_runs import Actor
from asyncstageout.clients.dbs import DBSClient, DBSReader
from asyncstageout.clients.deletion import Deleter, deletable_schemes
from asyncstageout.clients.errors import FTSError
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.clients.http import Patience
from asyncstageout.clients.storage import StorageClient
from asyncstageout.clients.webhook import Webhook, read_secret
from asyncstageout.core.blocks import PublicationSettings
from asyncstageout.core.planning import Shard
from asyncstageout.core.selections import APPROVE_ABOVE, Selection
from asyncstageout.steps import acting, cancel, clean, clean_run, deliver, intake, reconcile, retention
from asyncstageout.steps.acting import Deed
from asyncstageout.steps.assemble import assemble
from asyncstageout.steps.collect import collect
from asyncstageout.steps.group import group
from asyncstageout.steps.publication_summary import PublicationNeedsPeople
from asyncstageout.steps.publication_summary import summarise as publication_summary
from asyncstageout.steps.publish import PublishingStopped, publish
from asyncstageout.steps.recording import Summary, recorded
from asyncstageout.steps.sense import contact, look_at_server
from asyncstageout.steps.statistics import roll_up, say_what_happened
from asyncstageout.steps.submit import submit
from asyncstageout.steps.summarise import CycleIncomplete, summarise
from asyncstageout.steps.update_catalogue import update_catalogue
from week.town import Town

FTS_SERVER = "fts3_default"
HOOK = "hook"
SECRET = "whsec_" + base64.b64encode(b"of the week, and of nobody else").decode()
IMPATIENT = Patience(tries=1, connect_s=5, read_s=60)
RED = (
    FTSError,
    CycleIncomplete,
    reconcile.NeedsAPerson,
    PublishingStopped,
    PublicationNeedsPeople,
    deliver.DeliveryNeedsAPerson,
    clean_run.CleaningNeedsPeople,
    intake.IntakeNeedsPeople,
)
"""What makes a task red, so that somebody looks; the next run goes on. Anything else is a defect."""

logger = logging.getLogger("week")


class House:
    """A worker: one connection to the catalogue, and clients of its own."""

    schemes = deletable_schemes()

    def __init__(self, town: Town) -> None:
        self._town = town
        self._session = town.new_session()
        self.conn = connect(town.catalogue, "week")
        self._fts = FTS3Client(town.url("fts"), self._session, vo="cms", patience=IMPATIENT)
        dbs = f"{town.url('dbs')}/dbs/prod"
        self._dbs = DBSClient(f"{dbs}/phys03/DBSWriter", self._session, patience=IMPATIENT)
        self._reader = DBSReader(f"{dbs}/global/DBSReader", self._session, patience=IMPATIENT)
        self._storage = StorageClient(self._session, patience=IMPATIENT)
        self._hook = Webhook(
            town.url("hook"), self._session, [read_secret(SECRET)], batch=1000, installation="week",
            subscription=HOOK,
        )  # fmt: skip
        self.reds: Counter[str] = Counter()
        """Red tasks, by name."""

    def close(self) -> None:
        self.conn.close()
        self._session.close()

    # -- collaborators: one FTS, one DBS instance, one credential, one subscriber -------------------

    def client(self, name: str, _identity: str = "") -> FTS3Client | DBSClient:
        return self._fts if name == FTS_SERVER else self._dbs

    def storage_tokens(self, _identity: str) -> None:
        return None

    def settings(self, _dbs: str) -> PublicationSettings:
        return PublicationSettings()

    def global_reader(self, _dbs: str) -> DBSReader:
        return self._reader

    def deleter(self, _identity: str, _url: str, _lfn: str) -> Deleter:
        return self._storage

    # -- what the DAGs do --------------------------------------------------------------------------

    def intake(self, run: str, source: intake.Source, since: datetime) -> None:
        interval = intake.Interval(since, _now())
        self._step(
            "intake",
            "collect",
            run,
            lambda step: intake.collect(self.conn, source, interval, step),
            map_index=0,
        )
        self._step(
            "intake",
            "summarise",
            run,
            lambda _: intake.summarise(self.conn, "stageout_intake", run, [source.name]),
        )

    def transfer(self, run: str, params: CycleParams | None = None, *, is_backfill: bool = False) -> None:
        """Let a cycle come and go. Called again with the same run it goes on, as a cleared run does."""
        shards: list[Shard] = []
        dag_id = "stageout_transfer"

        def first(step: int) -> Summary:
            return collect(
                self.conn, dag_id=dag_id, run_id=run, params=params or CycleParams(), today=_now().date(),
                step_run=step, is_backfill=is_backfill,
            )  # fmt: skip

        self._step("transfer", "collect", run, first)
        cycle = open_cycle(self.conn, dag_id, run, params or CycleParams())

        def second(step: int) -> Summary:
            summary, packed = group(self.conn, cycle, step_run=step)
            shards.extend(packed)
            return summary

        self._step("transfer", "group", run, second)
        for number in range(len(shards)):
            self._step(
                "transfer",
                "submit",
                run,
                lambda step, shard=number: submit(
                    self.conn, self, cycle_id=cycle.cycle_id, shard=shard, step_run=step
                ),
                map_index=number,
            )
        self._step("transfer", "summarise", run, lambda _: summarise(self.conn, cycle))

    def sense(self, run: str) -> None:
        """Ask FTS until it has no more news, and apply it."""
        contact(self.conn, self._fts, fts_server=FTS_SERVER, now=_now())
        try:
            while look_at_server(self.conn, self._fts, fts_server=FTS_SERVER, now=_now()).jobs:
                pass
        except FTSError as silence:
            logger.debug("%s", silence)
            self.reds["sense.sense"] += 1
        if staged_reports(self.conn):
            self._step(
                "sense",
                "update_catalogue",
                run,
                lambda step: update_catalogue(self.conn, now=_now(), step_run=step),
            )

    def kill(self, run: str) -> None:
        """Tell FTS what people killed."""
        self._step(
            "kill", "cancel", run, lambda step: cancel.cancel(self.conn, self, now=_now(), step_run=step)
        )

    def reconcile(self, run: str) -> None:
        found: list[Summary] = []

        def look(step: int) -> Summary:
            found.append(reconcile.check(self.conn, self, step_run=step))
            return found[0]

        self._step("reconcile", "check", run, look)
        if any(found[0].counts.values()):
            self._step(
                "reconcile", "repair", run, lambda step: reconcile.repair(self.conn, self, step_run=step)
            )
            self._step(
                "reconcile", "verdict", run, lambda step: reconcile.verdict(self.conn, self, step_run=step)
            )

    def publish(self, run: str) -> None:
        shards: list[tuple[int, ...]] = []

        def first(step: int) -> Summary:
            summary, found = assemble(self.conn, self.settings, now=_now(), step_run=step)
            shards.extend(tuple(shard.block_ids) for shard in found)
            return summary

        self._step("publish", "assemble", run, first)
        for number, ids in enumerate(shards):
            self._step(
                "publish",
                "publish",
                run,
                lambda step, ids=ids: publish(self.conn, self, ids, step_run=step),
                map_index=number,
            )
        if shards:
            self._step(
                "publish",
                "summarise",
                run,
                lambda _: publication_summary(self.conn, dag_id="stageout_publish", run_id=run),
            )

    def deliver(self, run: str) -> None:
        for name in due_subscriptions(self.conn):
            self._step(
                "publish",
                "deliver",
                run,
                lambda step, name=name: deliver.deliver(
                    self.conn, name, lambda _view: self._hook, step_run=step
                ),
            )

    def clean(self, run: str) -> None:
        shards: list[clean_run.Shard] = []

        def first(_step: int) -> Summary:
            summary, found = clean_run.look(self.conn)
            shards.extend(found)
            return summary

        self._step("clean", "look", run, first)
        for number, shard in enumerate(shards):
            self._step(
                "clean",
                "delete",
                run,
                lambda step, sites=shard.sites: clean.delete(self.conn, self, sites=sites, step_run=step),
                map_index=number,
            )
        if shards:
            self._step(
                "clean",
                "summarise",
                run,
                lambda step: clean_run.summarise(self.conn, "stageout_clean", run, now=_now(), step_run=step),
            )

    def statistics(self, run: str, since: datetime) -> None:
        """Count the hours since then, make partitions, delete what nobody needs."""
        now = _now()
        steps: dict[str, Callable[[int], Summary]] = {
            "roll_up": lambda step: roll_up(self.conn, since, now, now=now, step_run=step, catches_up=True),
            "partitions": lambda step: retention.turn_partitions(self.conn, now=now, step_run=step),
            "prune": lambda step: retention.prune_rows(self.conn, now=now, step_run=step),
            "summarise": lambda _: say_what_happened(self.conn, since, now),
        }
        for name, step in steps.items():
            self._step("statistics", name, run, step)

    def act(self, deed: Deed, selection: Selection, who: str) -> int:
        """Do what a person asks for; return how many files it hit."""
        done = recorded(
            self.conn,
            Actor("week", who),
            lambda step: acting.do(
                self.conn, deed, selection, comment=f"by {who}", at_most=APPROVE_ABOVE, step_run=step
            ),
        )
        return done.counts["files"]

    def _step(
        self, dag: str, task: str, run: str, body: Callable[[int], Summary], *, map_index: int = -1
    ) -> None:
        """Run a task; a red one is counted, and what comes after it goes on as it can."""
        actor = Actor(task, "week", f"stageout_{dag}", run, map_index)
        try:
            recorded(self.conn, actor, body)
        except RED as red:
            logger.debug("%s.%s: %s", dag, task, red)
            self.reds[f"{dag}.{task}"] += 1


def _now() -> datetime:
    return datetime.now(UTC)
