"""What must be true after the week, asked of the catalogue, the disks, the DBS and the subscriber themselves."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from psycopg import Connection

from asyncstageout.catalogue.audit import audit
from asyncstageout.catalogue.measures import MOVES
from asyncstageout.catalogue.statistics import Kind, Of, Period, by_subject, totals
from asyncstageout.core.states import TransferState
from asyncstageout.sandbox.arrivals import adler32_of
from week.manifest import Output
from week.servers import HEARD, SITES

DBS_FILE = "prod-phys03.sqlite"
SHOWN = 5
"""Violations of one kind."""

S = TransferState


class Finding(NamedTuple):
    """What one check saw: a sentence, and what speaks against it."""

    sentence: str
    violations: list[str]


class Row(NamedTuple):
    """A file as the catalogue has it."""

    state: str
    publication: str
    source: str
    block: str | None
    is_history: bool


@dataclass
class Scene:
    """Where to look."""

    conn: Connection
    folder: Path
    truth: Mapping[str, Output]
    """What was handed over, by request id: the latest of each."""
    start: datetime
    end: datetime

    @property
    def sites(self) -> Path:
        return self.folder / SITES

    @cached_property
    def rows(self) -> dict[str, list[Row]]:
        """Return all rows of each request id."""
        found = defaultdict(list)
        for name, *values in self.conn.execute(
            "SELECT request_id, t.state::text, publication::text, source, b.name, t.past FROM"
            " (SELECT request_id, state, publication, source, block_id, false AS past FROM transfer UNION ALL"
            " SELECT request_id, state, publication, source, block_id, true FROM transfer_history) t"
            " LEFT JOIN block b ON b.id = t.block_id"
        ):
            found[name].append(Row(*values))
        return dict(found)

    def of(self, output: Output) -> Row | None:
        rows = self.rows.get(output.request_id)
        return rows[0] if rows else None

    def outputs(self, *states: S) -> Iterator[Output]:
        """Yield what the catalogue says to be in one of these states."""
        return (one for one in self.truth.values() if (row := self.of(one)) and row.state in states)


def every_file_is_in_one_final_state(scene: Scene) -> Finding:
    bad = [
        f"{one.request['source_lfn']}: it was handed over, and is nowhere"
        for one in scene.truth.values()
        if one.request_id not in scene.rows
    ]
    bad += [f"{name}: nobody handed it over" for name in scene.rows.keys() - scene.truth.keys()]
    for name, rows in scene.rows.items():
        if len(rows) > 1:
            bad.append(f"{name}: it is in {len(rows)} places: {', '.join(row.state for row in rows)}")
        elif not S(rows[0].state).is_final:
            bad.append(f"{name}: it is {rows[0].state}")
    every = [row for rows in scene.rows.values() for row in rows]
    states = Counter(row.state for row in every)
    said = ", ".join(f"{states[state]:,} {state}" for state in (S.DONE, S.FAILED, S.KILLED))
    past = sum(row.is_history for row in every)
    return Finding(
        f"Each of {len(scene.truth):,} files is in one final state: {said}; {past:,} of them are history", bad
    )


def done_files_are_on_disk(scene: Scene) -> Finding:
    bad, count, size_bytes = [], 0, 0
    for one in scene.outputs(S.DONE):
        count += 1
        size_bytes += one.request["size_bytes"]
        if problem := _problem(one, scene.sites / one.destination_path):
            bad.append(f"{one.destination_path}: {problem}")
    return Finding(
        f"{count:,} DONE files, {size_bytes / 1e6:,.1f} MB, lie at their destinations with their sizes and checksums",
        bad,
    )


def _problem(one: Output, path: Path) -> str | None:
    if not path.is_file():
        return "it is DONE, and not there"
    size_bytes, adler32 = path.stat().st_size, adler32_of(path)
    if (size_bytes, adler32) != (one.request["size_bytes"], one.request["adler32"]):
        return f"it has {size_bytes} bytes, adler32 {adler32}, not {one.request['size_bytes']}, {one.request['adler32']}"
    return None


def wanted_files_are_in_dbs_once(scene: Scene) -> Finding:
    with closing(sqlite3.connect(f"file:{scene.folder / DBS_FILE}?mode=ro", uri=True)) as dbs:
        blocks = defaultdict(list)
        for lfn, block in dbs.execute("SELECT f.lfn, b.name FROM file f JOIN block b ON b.id = f.block_id"):
            blocks[lfn].append(block)
    bad, wanted, stays = [], 0, 0
    for one in scene.truth.values():
        lfn, row = one.request["destination_lfn"], scene.of(one)
        found = blocks.pop(lfn, [])
        if row is None:
            continue
        if one.is_wanted and row.state == S.DONE:
            wanted += 1
            if found != [row.block]:
                bad.append(
                    f"{lfn}: DBS has it in blocks {found}, the catalogue in {row.block} ({row.publication})"
                )
        elif one.is_wanted and row.publication == "DONE" and found == [row.block]:
            stays += 1
        elif found:
            bad.append(f"{lfn}: DBS has it, and it is {row.state}, publication {row.publication}")
    bad += [f"{lfn}: DBS has it, and nobody handed it over" for lfn in blocks]
    sentence = f"{wanted:,} files that were wanted in DBS are there once, in the block that the catalogue names; no other is"
    if stays:
        sentence += (
            f", but for {stays:,} that were published before a later retry of their job, which did not arrive"
        )
    return Finding(sentence, bad)


def no_temporary_copy_is_left(scene: Scene) -> Finding:
    """Policy keeps copies of files that failed for 7 days, of killed ones for a day: all that is over by now."""
    left = [path.relative_to(scene.sites) for path in scene.sites.glob("*/store/temp/**/*") if path.is_file()]
    known = {one.source_path: one for one in scene.truth.values()}
    bad = []
    for path in left:
        row = scene.of(known[path]) if path in known else None
        bad.append(
            f"{path}: left there; " + (f"its file is {row.state}" if row else "it is no file's source")
        )
    (waiting,) = scene.conn.execute("SELECT count(*) FROM cleaning").fetchone() or (0,)
    if waiting:
        bad.append(f"{waiting} temporary copies wait for their deletion")
    rows = dict(
        scene.conn.execute(
            "SELECT to_state, count(*) FROM file_event WHERE kind = 'cleaning' GROUP BY 1"
        ).fetchall()
    )
    said = ", ".join(f"{count:,} {state}" for state, count in sorted(rows.items()))
    return Finding(f"No temporary copy is left on any disk, no policy keeps one any longer ({said})", bad)


def the_audit_is_clean(scene: Scene) -> Finding:
    results = list(audit(scene.conn))
    bad = [
        f"{one.name}: {one.violations} times, such as {one.samples[:2]}" for one in results if one.violations
    ]
    return Finding(f"aso audit proves all {len(results)} invariants", bad)


def statistics_add_up(scene: Scene) -> Finding:
    period = Period.covering(scene.start, scene.end)
    counted = totals(scene.conn, period)
    bad = []
    for name, move in MOVES.items():
        row = scene.conn.execute(f"SELECT count(*) FROM transfer_event WHERE {move}").fetchone()
        if row != (counted[name],):
            bad.append(f"{name}: statistics say {counted[name]}, events {row}")
    if counted["arrived"] != len(scene.truth):
        bad.append(
            f"{counted['arrived']} files arrived by the statistics, {len(scene.truth)} were handed over"
        )
    for kind in (Kind.LINK, Kind.USER, Kind.TASK):
        pieces = by_subject(scene.conn, period, Of(kind), limit=1_000_000)
        for name in MOVES:
            if (added := sum(piece[name] for piece in pieces)) != counted[name]:
                bad.append(f"{name}: {added} by {kind}, {counted[name]} in all")
    said = ", ".join(f"{counted[name]:,} {name.replace('_', ' ')}" for name in MOVES)
    return Finding(
        f"Statistics agree with the files, and by link, user and task with each other: {said}", bad
    )


def everybody_was_told(scene: Scene) -> Finding:
    states = dict(
        scene.conn.execute(
            "SELECT to_state, count(*) FROM file_event WHERE kind = 'delivery' GROUP BY 1"
        ).fetchall()
    )
    (waiting,) = scene.conn.execute("SELECT count(*) FROM outbox").fetchone() or (0,)
    bad = [f"{waiting} messages wait in the outbox"] if waiting else []
    heard: defaultdict[str, list[str]] = defaultdict(list)
    ids = Counter()
    for line in (scene.folder / HEARD).read_text().splitlines():
        for message in json.loads(line)["messages"]:
            ids[message["id"]] += 1
            if ids[message["id"]] == 1:
                heard[message["data"]["request_id"]].append(message["type"])
    for name, (row, *_) in scene.rows.items():
        ends = [kind for kind in heard[name] if kind.startswith("transfer.")]
        if not ends or ends[-1] != f"transfer.{row.state.lower()}":
            bad.append(f"{name}: it is {row.state}, and the subscriber heard {heard[name]}")
        if row.publication == "DONE" and "publication.done" not in heard[name]:
            bad.append(f"{name}: it is published, and the subscriber never heard")
    twice = ids.total() - len(ids)
    sentence = (
        f"The outbox is empty; the subscriber heard {len(ids):,} messages, of each file its end as the last"
    )
    if twice:
        sentence += f"; {twice:,} came twice, with their ids"
    return Finding(
        f"{sentence} ({', '.join(f'{count:,} {state}' for state, count in sorted(states.items()))})", bad
    )


CHECKS: tuple[Callable[[Scene], Finding], ...] = (
    every_file_is_in_one_final_state,
    done_files_are_on_disk,
    wanted_files_are_in_dbs_once,
    no_temporary_copy_is_left,
    the_audit_is_clean,
    statistics_add_up,
    everybody_was_told,
)


def examine(scene: Scene, on_check: Callable[[], object] = lambda: None) -> list[Finding]:
    """Look everywhere."""
    found = []
    for check in CHECKS:
        found.append(check(scene))
        on_check()
    return found


def verdict(findings: Iterable[Finding]) -> Iterator[str]:
    """Yield lines: what holds, and where it does not."""
    for finding in findings:
        yield f"{'NOT so' if finding.violations else 'Checked'}: {finding.sentence}."
        yield from (f"    {text}" for text in finding.violations[:SHOWN])
        if (more := len(finding.violations) - SHOWN) > 0:
            yield f"    and {more:,} more"
