"""Blocks while they are assembled: ready files go in, and time, a limit or the task's end closes them.

What is looked at follows what has become due, never what waits: a file without metadata, or of another
publisher, is put off (``transfer.due_at``) until something happens to it, and an open block until the first
rule may close it (``block.due_at``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.types.json import Jsonb

from asyncstageout.core.blocks import BlockKey, Filling, OpenBlock
from asyncstageout.core.crab import OWN_WORKER
from asyncstageout.core.publication import ArrivedFile, Claim, Facts
from asyncstageout.core.states import FileType

_ASSEMBLING_LOCK = 0x5A54
"""Two that assemble at the same moment do it one after the other: one open block for each key."""

# Only what nobody has read yet comes with its whole text.
_DUE = """
SELECT t.id, t.username, t.type::text, t.destination_lfn, t.size_bytes, t.adler32, t.ended_at,
    CASE WHEN c.publisher <> %(own)s THEN 'others' WHEN c.publish = 0 THEN 'not yet' ELSE 'ours' END,
    t.task_id, t.destination, k.dbs, m.request_id, m.problem,
    CASE WHEN m.problem IS NULL AND m.dataset IS NULL THEN m.body END,
    m.dataset, m.lfn, m.size_bytes, m.adler32, m.lumis, m.events, m.payload_bytes
FROM (
    SELECT * FROM transfer WHERE state = 'DONE' AND publication = 'NEW' AND due_at <= now()
    ORDER BY due_at, id LIMIT %(at_most)s FOR UPDATE SKIP LOCKED
) t JOIN task k ON k.id = t.task_id LEFT JOIN file_metadata m USING (request_id)
    LEFT JOIN crab_record c ON c.transfer_id = t.id
ORDER BY t.due_at, t.id
"""

_KEEP_FACTS = """
UPDATE file_metadata m SET dataset = f.dataset, lfn = f.lfn, size_bytes = f.size_bytes, adler32 = f.adler32,
    lumis = f.lumis, events = f.events, payload_bytes = f.payload_bytes, problem = f.problem
FROM jsonb_to_recordset(%(facts)s) AS f(request_id text, dataset text, lfn text, size_bytes bigint,
    adler32 text, lumis integer, events bigint, payload_bytes bigint, problem text)
WHERE m.request_id = f.request_id
"""

_PUT_OFF = """
UPDATE transfer t SET due_at = p.due_at
FROM unnest(%(ids)s::bigint[], %(dues)s::timestamptz[]) AS p(id, due_at)
WHERE t.id = p.id AND t.publication = 'NEW'
"""

_TURN_DOWN = """
WITH refused AS (
    SELECT * FROM unnest(%(ids)s::bigint[], %(states)s::publication_state[], %(reasons)s::text[])
        AS r(id, state, reason)
), changed AS (
    UPDATE transfer t SET publication = r.state FROM refused r WHERE t.id = r.id AND t.publication = 'NEW'
    RETURNING t.id, t.publication, r.reason
), record AS (
    UPDATE crab_record c SET publication_failure_reason = x.reason, updated_at = now()
    FROM changed x WHERE c.transfer_id = x.id
)
INSERT INTO file_event (transfer_id, kind, from_state, to_state, step_run, reason)
SELECT id, 'publication', 'NEW', publication, %(step_run)s, reason FROM changed ORDER BY id
"""

_OPEN_OF_KEYS = """
SELECT b.task_id, b.dataset, b.destination, b.dbs, b.id, cardinality(b.transfer_ids), b.lumis, b.payload_bytes
FROM unnest(%(tasks)s::bigint[], %(datasets)s::text[], %(destinations)s::text[], %(dbs)s::text[])
    AS k(task_id, dataset, destination, dbs)
JOIN block b USING (task_id, dataset, destination, dbs) WHERE b.state = 'OPEN'
"""

_FILLING = """
filling AS (
    SELECT f.*, l.ids, l.oldest_at FROM jsonb_to_recordset(%(fillings)s) AS f(place integer, block_id bigint,
        name text, task_id bigint, dataset text, destination text, dbs text, lumis bigint,
        payload_bytes bigint, size_bytes bigint, close_reason text)
    JOIN (
        SELECT place, array_agg(id ORDER BY n) AS ids, min(ended_at) AS oldest_at
        FROM unnest(%(ids)s::bigint[], %(places)s::integer[], %(ended)s::timestamptz[])
            WITH ORDINALITY AS m(id, place, ended_at, n) GROUP BY place
    ) l USING (place)
)
"""

# First what was open is filled, and closed if it is full: then there is room for the next open one.
_GROW = f"""
WITH {_FILLING}
UPDATE block b SET transfer_ids = b.transfer_ids || f.ids, lumis = f.lumis, payload_bytes = f.payload_bytes,
    size_bytes = b.size_bytes + f.size_bytes, oldest_at = least(b.oldest_at, f.oldest_at), due_at = now(),
    state = CASE WHEN f.close_reason IS NULL THEN 'OPEN' ELSE 'CLOSED' END::block_state,
    closed_at = CASE WHEN f.close_reason IS NOT NULL THEN now() END, close_reason = f.close_reason
FROM filling f WHERE b.id = f.block_id AND b.state = 'OPEN'
"""

_MAKE = f"""
WITH {_FILLING}
INSERT INTO block (name, task_id, dataset, destination, dbs, transfer_ids, lumis, payload_bytes, size_bytes,
    oldest_at, state, closed_at, close_reason)
SELECT name, task_id, dataset, destination, dbs, ids, lumis, payload_bytes, size_bytes, oldest_at,
    CASE WHEN close_reason IS NULL THEN 'OPEN' ELSE 'CLOSED' END::block_state,
    CASE WHEN close_reason IS NOT NULL THEN now() END, close_reason
FROM filling WHERE block_id IS NULL ORDER BY place
"""

_PLACE = f"""
WITH {_FILLING}, placed AS (
    SELECT u.id, b.id AS block_id, b.name FROM filling f
        JOIN block b ON b.id = f.block_id OR (f.block_id IS NULL AND b.name = f.name)
        CROSS JOIN LATERAL unnest(f.ids) AS u(id)
), changed AS (
    UPDATE transfer t SET publication = 'ACQUIRED', block_id = p.block_id FROM placed p
    WHERE t.id = p.id AND t.state = 'DONE' AND t.publication = 'NEW'
    RETURNING t.id, p.name
), record AS (
    -- No publisher of CRAB's may speak of it from now on.
    UPDATE crab_record c SET publisher = %(own)s, updated_at = now() FROM changed x
    WHERE c.transfer_id = x.id AND c.publisher IS NULL
)
INSERT INTO file_event (transfer_id, kind, from_state, to_state, subject, step_run)
SELECT id, 'publication', 'NEW', 'ACQUIRED', name, %(step_run)s FROM changed ORDER BY id
"""

_OPEN_AND_DUE = """
SELECT b.id, b.dbs, b.opened_at, b.oldest_at,
    (SELECT max(o.closed_at) FROM block o WHERE o.dbs = b.dbs AND o.dataset = b.dataset), k.complete_at
FROM block b JOIN task k ON k.id = b.task_id
WHERE b.state = 'OPEN' AND b.due_at <= now() ORDER BY b.due_at, b.id LIMIT %(at_most)s FOR UPDATE OF b
"""

_CLOSE = """
UPDATE block b SET state = 'CLOSED', closed_at = now(), close_reason = c.reason, due_at = now()
FROM unnest(%(ids)s::bigint[], %(reasons)s::text[]) AS c(id, reason) WHERE b.id = c.id AND b.state = 'OPEN'
"""

_LOOK_LATER = """
UPDATE block b SET due_at = l.due_at
FROM unnest(%(ids)s::bigint[], %(dues)s::timestamptz[]) AS l(id, due_at)
WHERE b.id = l.id AND b.state = 'OPEN'
"""


class Candidate(NamedTuple):
    """A file to be judged, and what is known of it."""

    file: ArrivedFile
    task_id: int
    destination: str
    dbs: str
    request_id: str | None
    """Of its metadata; None: there are none."""
    facts: Facts | str | None
    unread: Mapping[str, Any] | None
    """Metadata that nobody has read yet."""


def lock_assembling(conn: Connection) -> None:
    """Wait for another one that assembles; released at the end of the open transaction."""
    conn.execute("SELECT pg_advisory_xact_lock(%s)", (_ASSEMBLING_LOCK,))


def take_due_files(conn: Connection, at_most: int) -> list[Candidate]:
    """Lock and return files that have arrived and are due for a look, the longest due first."""
    rows = conn.execute(_DUE, {"at_most": at_most, "own": OWN_WORKER}).fetchall()
    return [_candidate(*row) for row in rows]


def _candidate(*row: Any) -> Candidate:
    transfer_id, username, kind, lfn, size_bytes, adler32, ended_at, claim = row[:8]
    file = ArrivedFile(
        transfer_id, username, FileType(kind), lfn, size_bytes, adler32, ended_at, Claim(claim)
    )
    task_id, destination, dbs, request_id, problem, unread = row[8:14]
    facts = problem or (Facts(*row[14:]) if row[14] is not None else None)
    return Candidate(file, task_id, destination, dbs, request_id, facts, unread)


def keep_facts(conn: Connection, facts: Mapping[str, Facts | str]) -> None:
    """Keep what was read of metadata, by request id."""
    rows = [
        {"request_id": name} | ({"problem": one} if isinstance(one, str) else one._asdict())
        for name, one in facts.items()
    ]
    if rows:
        conn.execute(_KEEP_FACTS, {"facts": Jsonb(rows)})


def put_off(conn: Connection, until: Sequence[tuple[int, datetime]]) -> None:
    """Look at files again at these times, if nothing wakes them before."""
    if until:
        conn.execute(_PUT_OFF, {"ids": [one for one, _ in until], "dues": [due for _, due in until]})


def turn_down(conn: Connection, refused: Sequence[tuple[int, str, str]], step_run: int) -> None:
    """Make files FAILED, or NOT_REQUIRED, that no block can take: (file, state, reason)."""
    if refused:
        ids, states, reasons = (list(column) for column in zip(*refused, strict=True))
        conn.execute(_TURN_DOWN, {"ids": ids, "states": states, "reasons": reasons, "step_run": step_run})


def open_blocks(conn: Connection, keys: Collection[BlockKey]) -> dict[BlockKey, Filling]:
    """Return the open block of each of the keys that has one."""
    names = ("tasks", "datasets", "destinations", "dbs")
    columns = zip(*keys, strict=True) if keys else [()] * 4
    rows = conn.execute(
        _OPEN_OF_KEYS, {name: list(column) for name, column in zip(names, columns, strict=True)}
    )
    return {(key := BlockKey(*row[:4])): Filling(key, *row[4:]) for row in rows}


def write_fillings(
    conn: Connection, fillings: Sequence[Filling], names: Sequence[str], step_run: int
) -> None:
    """Put files into their blocks, old and new, and make them ACQUIRED.

    Args:
        names: of the blocks that are new, one for each filling.
    """
    if not fillings:
        return
    rows = [
        {
            "place": place,
            "block_id": one.block_id,
            "name": name,
            **one.key._asdict(),
            "lumis": one.lumis,
            "payload_bytes": one.payload_bytes,
            "size_bytes": sum(file.size_bytes for file in one.added),
            "close_reason": one.close_reason,
        }
        for place, (one, name) in enumerate(zip(fillings, names, strict=True))
    ]
    members = [(place, file) for place, one in enumerate(fillings) for file in one.added]
    values = {
        "fillings": Jsonb(rows),
        "ids": [file.transfer_id for _, file in members],
        "places": [place for place, _ in members],
        "ended": [file.ended_at for _, file in members],
        "own": OWN_WORKER,
        "step_run": step_run,
    }
    for statement in (_GROW, _MAKE, _PLACE):
        conn.execute(statement, values)


def open_and_due(conn: Connection, at_most: int) -> list[OpenBlock]:
    """Lock and return open blocks that a rule may close by now."""
    return [OpenBlock(*row) for row in conn.execute(_OPEN_AND_DUE, {"at_most": at_most})]


def close_blocks(conn: Connection, reasons: Mapping[int, str]) -> None:
    """Close open blocks: their lists are final."""
    conn.execute(_CLOSE, {"ids": list(reasons), "reasons": list(reasons.values())})


def look_later(conn: Connection, until: Mapping[int, datetime]) -> None:
    """Look at open blocks again at these times, unless something is put in before."""
    conn.execute(_LOOK_LATER, {"ids": list(until), "dues": list(until.values())})
