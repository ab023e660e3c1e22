"""What is counted of what happened to files, and how counts are added up: for writing and for reading.

All roll-ups have the same columns (migration 0008), and whatever is in them can be added up.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from asyncstageout.core.delays import Delay

MOVES: dict[str, str] = {
    "arrived": "from_state IS NULL",
    "sent_again": "from_state IN ('DONE', 'FAILED', 'KILLED') AND to_state = 'NEW'",
    "accepted": "to_state = 'SUBMITTED'",
    "retried": "to_state = 'RETRY'",
    "done": "to_state = 'DONE'",
    "failed": "to_state = 'FAILED'",
    "killed": "to_state = 'KILLED'",
}
"""Moves of files; each is counted in files, and in their bytes (``..._bytes``)."""

ATTEMPTS: dict[str, str] = {
    # A kill may come too late.
    "attempts_done": "from_state IN ('SUBMITTED', 'KILL') AND to_state = 'DONE'",
    # What was killed says nothing of the link.
    "attempts_failed": "from_state = 'SUBMITTED' AND to_state IN ('RETRY', 'FAILED')",
}
"""Attempts in FTS that ended; how many of them well is a link's efficiency."""

COUNTED = f"(from_state IS NULL OR {' OR '.join(f'({move})' for move in MOVES.values())})"
"""Which events count at all: not those between, such as ACQUIRED."""

COUNTS = (*(f"{name}{unit}" for name in MOVES for unit in ("", "_bytes")), *ATTEMPTS)
MAPS = ("failures", "around")
"""Counts by a name that is open: a category of failure, a kind of event and its state."""
DELAYS = tuple(Delay)
WITHOUT_DELAYS = (*COUNTS, *MAPS)
COLUMNS = (*WITHOUT_DELAYS, *DELAYS)


def added_up(source: str, keys: Sequence[str], columns: Collection[str] = COLUMNS) -> str:
    """Return CTEs that add roll-ups up: the last is ``added``, with the keys and the columns.

    Args:
        source: a SELECT of roll-ups with the keys and the columns.
        keys: what to add up by, at least one.
        columns: those that are wanted. Each count costs something; each map and delay as much as all counts.
    """
    named = ", ".join(keys)
    sums = [f"sum({name})::bigint AS {name}" for name in COUNTS if name in columns]
    maps, delays = ([name for name in names if name in columns] for names in (MAPS, DELAYS))
    parts = [
        # Read once, it need not be kept.
        f"piece AS {'' if maps or delays else 'NOT '}MATERIALIZED ({source})",
        f"counted AS (SELECT {', '.join([named, *sums])} FROM piece GROUP BY {named})",
        *(_MAP.format(name=name, keys=named) for name in maps),
        *(_DELAY.format(name=name, keys=named) for name in delays),
    ]
    joins = "".join(f" LEFT JOIN added_{name} USING ({named})" for name in (*maps, *delays))
    return ", ".join([*parts, f"added AS (SELECT {', '.join((*keys, *columns))} FROM counted{joins})"])


_MAP = """
added_{name} AS (
    SELECT {keys}, jsonb_object_agg(word, files) AS {name} FROM (
        SELECT {keys}, m.key AS word, sum(m.value::bigint) AS files
        FROM piece CROSS JOIN LATERAL jsonb_each_text({name}) m GROUP BY {keys}, m.key
    ) word GROUP BY {keys}
)"""

_DELAY = """
added_{name} AS (
    SELECT {keys}, array_agg(ARRAY[bucket, files] ORDER BY bucket) AS {name} FROM (
        SELECT {keys}, {name}[i][1] AS bucket, sum({name}[i][2])::integer AS files
        FROM piece CROSS JOIN LATERAL generate_subscripts({name}, 1) i GROUP BY {keys}, {name}[i][1]
    ) bucket GROUP BY {keys}
)"""
