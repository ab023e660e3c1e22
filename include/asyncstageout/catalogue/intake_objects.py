"""What was taken in from collected sources, so that nothing is taken twice and nothing late is missed."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple

from psycopg import Connection

READ_UNTIL = ""
"""Name under which a source's time is kept; no object has it."""


class TakenObject(NamedTuple):
    """An object, page or window of a source, as it was found at one time."""

    source: str
    name: str
    digest: str
    """Of its content or version: the same name with other content is another object."""


class ObjectResult(NamedTuple):
    created: int
    existed: int
    refused: int
    problem: str | None

    @property
    def is_clean(self) -> bool:
        return not self.refused and self.problem is None


class ObjectInTrouble(NamedTuple):
    """An object that people must look at."""

    source: str
    name: str
    refused: int
    problem: str | None


class CollectRecord(NamedTuple):
    """The last record of one source's task in a run; ``outcome`` is None while it runs, or after it died."""

    outcome: str | None
    sentence: str | None
    counts: dict[str, int]


def known_objects(
    conn: Connection, source: str, names: Collection[str]
) -> dict[tuple[str, str], ObjectResult]:
    """Return what became of these objects, by name and digest."""
    rows = conn.execute(
        "SELECT name, digest, created, existed, refused, problem FROM intake_object"
        " WHERE source = %s AND name = ANY(%s) AND name <> %s",
        (source, list(names), READ_UNTIL),
    )
    return {(name, digest): ObjectResult(*result) for name, digest, *result in rows}


def record_object(conn: Connection, taken: TakenObject, result: ObjectResult, step_run: int) -> None:
    """Note what became of an object; the last time counts."""
    conn.execute(
        """
        INSERT INTO intake_object (source, name, digest, step_run, created, existed, refused, problem)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
        ON CONFLICT (source, name, digest) DO UPDATE SET
            (taken_at, step_run, created, existed, refused, problem) =
            (now(), EXCLUDED.step_run, EXCLUDED.created, EXCLUDED.existed, EXCLUDED.refused, EXCLUDED.problem)
        """,
        (*taken, step_run, *result),
    )


def read_until(conn: Connection, source: str) -> datetime | None:
    """Return until which time a source with times was read without a gap; None: never."""
    row = conn.execute(
        "SELECT max(digest::timestamptz) FROM intake_object WHERE source = %s AND name = %s",
        (source, READ_UNTIL),
    ).fetchone()
    return row[0] if row else None


def note_read_until(conn: Connection, source: str, at: datetime, step_run: int) -> None:
    """Note that a source was read until then; an earlier time than the noted one changes nothing."""
    with conn.transaction():
        conn.execute(
            "DELETE FROM intake_object WHERE source = %s AND name = %s AND digest::timestamptz < %s",
            (source, READ_UNTIL, at),
        )
        conn.execute(
            "INSERT INTO intake_object (source, name, digest, step_run)"
            " SELECT %(source)s, %(name)s, %(digest)s, %(step_run)s WHERE NOT EXISTS"
            " (SELECT FROM intake_object WHERE source = %(source)s AND name = %(name)s)",
            {"source": source, "name": READ_UNTIL, "digest": at.isoformat(), "step_run": step_run},
        )


def objects_in_trouble(conn: Connection, dag_id: str, run_id: str) -> list[ObjectInTrouble]:
    """Return what a run could not take in completely."""
    rows = conn.execute(
        """
        SELECT o.source, o.name, o.refused, o.problem
        FROM intake_object o JOIN step_run s ON s.id = o.step_run
        WHERE s.dag_id = %s AND s.run_id = %s AND (o.refused > 0 OR o.problem IS NOT NULL)
        ORDER BY o.source, o.name
        """,
        (dag_id, run_id),
    )
    return [ObjectInTrouble(*row) for row in rows]


def collect_records(conn: Connection, dag_id: str, run_id: str, task_id: str) -> dict[int, CollectRecord]:
    """Return the last record of each mapped task of a run, by map index."""
    rows = conn.execute(
        """
        SELECT DISTINCT ON (map_index) map_index, outcome, sentence, coalesce(counts, '{}')
        FROM step_run WHERE dag_id = %s AND run_id = %s AND task_id = %s
        ORDER BY map_index, id DESC
        """,
        (dag_id, run_id, task_id),
    )
    return {map_index: CollectRecord(*record) for map_index, *record in rows}
