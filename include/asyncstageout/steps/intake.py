"""Takes in what collected sources offer: records what came, puts aside what is wrong, marks what is consumed.

A source is anything that has a name and yields batches for an interval; see :class:`Source`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from psycopg import Connection

from asyncstageout.catalogue.intake import add_transfers
from asyncstageout.catalogue.intake_objects import (
    ObjectInTrouble,
    ObjectResult,
    TakenObject,
    collect_records,
    known_objects,
    note_read_until,
    objects_in_trouble,
    read_until,
    record_object,
)
from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.core.requests import read_requests
from asyncstageout.steps.recording import Summary, files

logger = logging.getLogger(__name__)

CHUNK = 10_000
"""Records that are taken in at once: one transaction, and what is in memory."""
KEPT_REFUSALS = 10_000
"""Of one batch; beyond them they are only counted."""
SHOWN_REFUSALS = 20
NAMED = 5


class Interval(NamedTuple):
    """Times from ``start_at`` until just before ``end_at``."""

    start_at: datetime
    end_at: datetime


class Record(NamedTuple):
    """One request as a source has it."""

    position: int
    """In its batch, from 1: a line, a row."""
    fields: Any
    """A mapping, as :class:`asyncstageout.core.requests.TransferRequest` wants it; all else is refused."""
    problem: str | None = None
    """Why it could not even be read."""


class Refused(NamedTuple):
    """Why one record was not taken; the others of its batch go on."""

    position: int
    source_lfn: str
    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.position}: {self.field}: {self.reason}"


@dataclass
class Report:
    """What became of a batch."""

    created: int = 0
    again: int = 0
    """A later retry of its job sends it again."""
    existed: int = 0
    """It was in the catalogue already; nothing changed."""
    refused: int = 0
    refusals: list[Refused] = field(default_factory=list)
    """The first :data:`KEPT_REFUSALS`, by position."""
    unreadable: str | None = None
    """Why the batch could not be read to its end; what was read before that was taken."""

    @property
    def is_clean(self) -> bool:
        return not self.refused and self.unreadable is None

    @property
    def problem(self) -> str | None:
        if self.unreadable is not None:
            return storable(self.unreadable)
        return storable(str(self.refusals[0])) if self.refusals else None

    def refuse(self, refusals: Sequence[Refused]) -> None:
        self.refused += len(refusals)
        self.refusals += sorted(refusals)[: max(0, KEPT_REFUSALS - len(self.refusals))]


class Unreadable(Exception):
    """A batch is broken and stays so: it cannot be read, or not to its end. Raised while records are read."""


class Gone(Exception):
    """A batch is no longer there: somebody else consumed it. Raised while records are read."""


class SourceUnreadable(Exception):
    """A source cannot be read at all, or cannot be told what was consumed. Other sources go on."""

    def __init__(self, source: str, why: str) -> None:
        self.source = source
        super().__init__(f"source {source}: {why}")


class Batch(Protocol):
    """What a source gives at once, and is told about: an object, a page of an answer, the rows of a window.

    Any number of records: they are read as a stream, once. With a ``digest`` the batch is remembered under
    its name: found again, it is not read again, and :meth:`done` is called again (the task may have died
    before it was). One that had a problem is read again if ``again`` is true.
    """

    @property
    def name(self) -> str:
        """Its name within the source, for people and for the memory."""
        ...

    @property
    def digest(self) -> str | None:
        """Of its content or version; None: it is consumed at the source itself, or may be read any number of
        times."""
        ...

    @property
    def again(self) -> bool: ...

    def records(self) -> Iterator[Record]:
        """Yield its records.

        Raises:
            Unreadable, Gone: see there.
            Exception: anything else: the source cannot be read now; nothing of the batch is consumed.
        """
        ...

    def done(self, report: Report) -> None:
        """Mark it consumed: every record is in the catalogue. May be called twice."""
        ...

    def refused(self, report: Report) -> None:
        """Put it aside with the report: what was good is in the catalogue, the rest is not."""
        ...


class Source(Protocol):
    """Where requests wait until they are collected.

    What was not consumed before is offered whatever its age, so that late arrivals are found; the interval
    is for sources that only know times. Batches may come again in any order: a request is known by its source
    LFN, and nothing is added twice.
    """

    @property
    def name(self) -> str: ...

    @property
    def has_times(self) -> bool:
        """Whether it looks at the interval; a run is then given all time since the last that read it."""
        ...

    def batches(self, interval: Interval) -> Iterator[Batch]:
        """Yield what there is, one after the other: a batch is marked before the next one is asked for.

        Raises:
            SourceUnreadable: or what its client raises.
        """
        ...


def collect(
    conn: Connection,
    source: Source,
    interval: Interval,
    step_run: int,
    *,
    is_backfill: bool = False,
    dry_run: bool = False,
) -> Summary:
    """Take in what a source offers.

    Args:
        is_backfill: exactly this interval; otherwise the time since the last run is in it too.
        dry_run: only say what would be; nothing is written, moved or marked.
    """
    if source.has_times and not is_backfill:
        last = read_until(conn, source.name)
        interval = Interval(min(interval.start_at, last or interval.start_at), interval.end_at)
    ensure_partitions(conn, datetime.now(UTC).date())
    this = _Collecting(conn, source.name, step_run, dry_run)
    for batch in source.batches(interval):
        this.take(batch)
    if source.has_times and not is_backfill and not dry_run:
        note_read_until(conn, source.name, interval.end_at, step_run)
    return this.summary()


@dataclass
class _Collecting:
    conn: Connection
    source: str
    step_run: int
    dry_run: bool
    counts: Counter[str] = field(default_factory=Counter)

    def take(self, batch: Batch) -> None:
        before = self._known(batch)
        if before is not None and (before.is_clean or not batch.again):
            self.counts["known"] += 1
            if before.is_clean and not self.dry_run:
                batch.done(Report(existed=before.created + before.existed))
            return
        try:
            report = self._read(batch)
        except Gone:
            return
        self._count(batch, report)
        if self.dry_run:
            return
        if batch.digest is not None or not report.is_clean:
            taken = TakenObject(self.source, batch.name, batch.digest or "")
            taken_in = report.created + report.again
            result = ObjectResult(taken_in, report.existed, report.refused, report.problem)
            record_object(self.conn, taken, result, self.step_run)
        (batch.done if report.is_clean else batch.refused)(report)

    def summary(self) -> Summary:
        counts = {
            name: self.counts[name]
            for name in ("batches", "created", "again", "existed", "refused", "in_trouble", "known")
        }
        would = "would be " if self.dry_run else ""
        sentence = (
            f"{self.source}: {files(counts['created'])} {would}taken in, {counts['existed']:,} were there"
            f" already, {counts['refused']:,} {would}refused"
        )
        if counts["again"]:
            sentence += f", {counts['again']:,} {would}sent again"
        if counts["in_trouble"]:
            sentence += f"; {counts['in_trouble']:,} of {counts['batches']:,} objects need people"
        return Summary(sentence, counts)

    def _known(self, batch: Batch) -> ObjectResult | None:
        if batch.digest is None:
            return None
        return known_objects(self.conn, self.source, [batch.name]).get((batch.name, batch.digest))

    def _read(self, batch: Batch) -> Report:
        report = Report()
        try:
            for chunk in _chunks(batch.records()):
                self._add(chunk, report)
        except Unreadable as error:
            report.unreadable = str(error)
        return report

    def _add(self, chunk: Sequence[Record], report: Report) -> None:
        if not chunk:
            return
        unread = [Refused(one.position, "", "record", one.problem) for one in chunk if one.problem]
        readable = [one for one in chunk if not one.problem]
        good, bad = read_requests(one.fields for one in readable)
        with self.conn.transaction(force_rollback=self.dry_run):
            answers = add_transfers(self.conn, good, self.step_run, origin=self.source)
        lfns = {position: request.source_lfn for position, request in good}
        outcomes = Counter(answer.outcome for answer in answers)
        report.created += outcomes["created"]
        report.again += outcomes["again"]
        report.existed += outcomes["exists"]
        report.refuse(
            [
                *unread,
                *(Refused(readable[no.position].position, no.source_lfn, no.field, no.reason) for no in bad),
                *(
                    Refused(readable[no.position].position, lfns[no.position], "request", no.reason or "")
                    for no in answers
                    if no.outcome == "refused"
                ),
            ]
        )

    def _count(self, batch: Batch, report: Report) -> None:
        self.counts.update(
            batches=1,
            created=report.created,
            again=report.again,
            existed=report.existed,
            refused=report.refused,
            in_trouble=not report.is_clean,
        )
        if report.unreadable is not None:
            logger.warning("%s: %s: %s", self.source, batch.name, report.unreadable)
        for refusal in report.refusals[:SHOWN_REFUSALS]:
            logger.warning("%s: %s: refused: %s", self.source, batch.name, refusal)


def _chunks(records: Iterator[Record]) -> Iterator[list[Record]]:
    chunk: list[Record] = []
    try:
        for record in records:
            chunk.append(record)
            if len(chunk) >= CHUNK:
                yield chunk
                chunk = []
    except Unreadable:
        # What was read before it broke counts.
        yield chunk
        raise
    yield chunk


class IntakeNeedsPeople(Exception):
    """Sources could not be read, or offered what cannot be taken in; everything else was taken in."""

    def __init__(self, unread: Mapping[str, str], troubles: Sequence[ObjectInTrouble]) -> None:
        self.unread = dict(unread)
        self.troubles = tuple(troubles)
        parts = [f"{name} was not read: {why}" for name, why in unread.items()]
        parts += [
            f"{one.source}: {one.name}: " + (f"{one.refused:,} refused, first " if one.refused else "")
            + (one.problem or "")
            for one in self.troubles[:NAMED]
        ]  # fmt: skip
        if len(troubles) > NAMED:
            parts.append(f"and {len(troubles) - NAMED:,} more objects")
        super().__init__("Intake needs people (runbooks/intake.md): " + "; ".join(parts))


def summarise(
    conn: Connection, dag_id: str, run_id: str, sources: Sequence[str], *, dry_run: bool = False
) -> Summary:
    """Say what a run took in.

    Args:
        sources: in the order of the mapped tasks.

    Raises:
        IntakeNeedsPeople: a source was not read, or something was refused or is broken.
    """
    records = collect_records(conn, dag_id, run_id, "collect")
    unread = {}
    totals: Counter[str] = Counter()
    for index, name in enumerate(sources):
        record = records.get(index)
        if record is None or record.outcome != "success":
            unread[name] = (record and record.sentence) or "its task did not end; see its log"
        else:
            totals.update({key: value for key, value in record.counts.items() if isinstance(value, int)})
    troubles = objects_in_trouble(conn, dag_id, run_id)
    if unread or troubles:
        raise IntakeNeedsPeople(unread, troubles)
    would = "would be " if dry_run else ""
    refused = f", {totals['refused']:,} would be refused" if dry_run else ""
    again = f", {totals['again']:,} {would}sent again" if totals["again"] else ""
    plural = "" if len(sources) == 1 else "s"
    return Summary(
        f"{files(totals['created'])} {would}taken in from {len(sources)} source{plural},"
        f" {totals['existed']:,} were there already{again}{refused}",
        {"sources": len(sources), "created": totals["created"], "again": totals["again"],
         "existed": totals["existed"], "refused": totals["refused"]},
    )  # fmt: skip


def numbered(rows: Iterable[Mapping[str, Any]], start: int = 1) -> Iterator[Record]:
    """Yield rows as records; what is empty counts as not said."""
    for position, row in enumerate(rows, start=start):
        yield Record(position, {name: value for name, value in row.items() if value is not None})


def storable(text: str) -> str:
    """Return a stranger's text as Postgres takes it."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()[:2000]
