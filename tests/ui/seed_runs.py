"""What runs leave behind, for a catalogue that :mod:`ui.seed` has filled: cycles, steps, jobs in doubt, acts."""

from __future__ import annotations

from datetime import datetime, timedelta
from random import Random
from typing import Any

from psycopg import Connection
from psycopg.types.json import Jsonb

from asyncstageout.catalogue.policies import put_policy
from asyncstageout.catalogue.restrictions import Area, lift, restrict
from asyncstageout.core.restrictions import Mode

# What a cycle saw: the links of its jobs, and lately those that are held back.
_LINKS = """
INSERT INTO cycle_link (cycle_id, source, destination, users, in_flight, room, held)
SELECT c.id, j.source, j.destination, 1 + count(*), sum(j.open_files), 2000 - sum(j.open_files), NULL
FROM cycle c JOIN fts_job j ON j.cycle_id = c.id GROUP BY 1, 2, 3
UNION ALL
SELECT c.id, b.source, b.destination, 3, 0, 0, 'breaker open: ' || b.reason
FROM cycle c CROSS JOIN link_breaker b WHERE c.created_at > %(now)s - interval '2 hours'
UNION ALL
SELECT c.id, r.site, 'T2_CH_CERN', 2, 0, 0, 'paused by ' || r.set_by || ': ' || r.reason
FROM cycle c CROSS JOIN restriction r
WHERE r.site IS NOT NULL AND NOT r.is_downtime AND c.created_at BETWEEN r.starts_at AND %(now)s
ON CONFLICT DO NOTHING
"""

_RESULT = """
WITH result AS (
    SELECT c.id, c.run_id, count(j.sid) AS jobs, coalesce(sum(cardinality(j.transfer_ids)), 0) AS files,
        coalesce(sum(j.size_bytes), 0)::bigint AS size_bytes, count(DISTINCT (j.source, j.destination)) AS links,
        (SELECT count(*) FROM cycle_link l WHERE l.cycle_id = c.id) AS seen,
        (SELECT count(held) FROM cycle_link l WHERE l.cycle_id = c.id) AS held
    FROM cycle c LEFT JOIN fts_job j ON j.cycle_id = c.id GROUP BY c.id
)
"""

_JITTER = "(s.id %% 17) / 40.0"
_STEPS = f"""
{_RESULT}
UPDATE step_run s SET
    started_at = s.started_at + (CASE s.task_id WHEN 'collect' THEN 0 WHEN 'group' THEN 1.1 ELSE 2.4 END + {_JITTER})
        * interval '1 s',
    ended_at = s.started_at + (CASE s.task_id WHEN 'collect' THEN 0.4 WHEN 'group' THEN 1.5
        ELSE 3.1 + r.jobs * 0.04 END + 2 * {_JITTER}) * interval '1 s',
    sentence = CASE s.task_id WHEN 'collect' THEN r.seen || ' links have waiting files'
            || CASE WHEN r.held > 0 THEN '; ' || r.held || ' of them held back' ELSE '' END
        WHEN 'group' THEN 'Planned ' || r.jobs || ' FTS jobs, ' || r.files || ' files on ' || r.links || ' links'
        ELSE 'FTS accepted ' || r.jobs || ' jobs with ' || r.files || ' files' END,
    counts = CASE s.task_id WHEN 'collect' THEN jsonb_build_object('links', r.seen, 'held_links', r.held)
        ELSE jsonb_build_object('jobs', r.jobs, 'files', r.files) END,
    map_index = CASE s.task_id WHEN 'submit' THEN 0 ELSE -1 END
FROM result r
WHERE s.dag_id = 'stageout_transfer' AND s.run_id = r.run_id
"""

_SUMMARIES = f"""
{_RESULT}
INSERT INTO step_run (dag_id, run_id, task_id, actor, started_at, ended_at, outcome, sentence, counts)
SELECT c.dag_id, c.run_id, 'summarise', 'airflow', c.created_at + interval '5 s', c.created_at + interval '5.2 s',
    'success', 'Submitted ' || r.jobs || ' FTS jobs, ' || r.files || ' files on ' || r.links || ' links',
    jsonb_build_object('jobs', r.jobs, 'files', r.files, 'size_bytes', r.size_bytes, 'held_links', r.held)
FROM result r JOIN cycle c USING (id) ORDER BY c.id
"""

_ENDED = """
UPDATE cycle SET collected_at = created_at + interval '0.4 s', grouped_at = created_at + interval '1.6 s',
    summarised_at = created_at + interval '5.2 s'
"""

# DAG, its steps with what they say, how often it runs, how many of its last runs are there.
_OTHERS: tuple[tuple[str, tuple[tuple[str, str], ...], timedelta, int], ...] = (
    ("stageout_publish", (
        ("assemble", "3 blocks are ready, 1,204 files wait for more"),
        ("publish", "Published 3 blocks with 300 files"),
        ("summarise", "300 files in 3 blocks are published"),
        ("list_subscribers", "Something waits for crab"), ("deliver", "Told crab of 300 files"),
    ), timedelta(minutes=1), 20),
    ("stageout_clean", (
        ("look", "2,310 temporary copies at 14 sites may be deleted"),
        ("delete", "Deleted 2,310 temporary copies, 4.1 TB"), ("summarise", "Deleted 2,310 temporary copies, 4.1 TB"),
    ), timedelta(minutes=15), 8),
    ("stageout_intake", (
        ("list_sources", "1 source"), ("collect", "120 files came in, 3 were there before"),
        ("summarise", "120 files came in from 1 source"),
    ), timedelta(minutes=5), 12),
    ("stageout_credentials", (("renew", "Nobody of 31 with files needs a new credential"),), timedelta(minutes=30), 4),
    ("stageout_sites", (("load", "64 sites are described as before, 1 changed"),), timedelta(days=1), 1),
)  # fmt: skip

_ACTS: tuple[tuple[str, str, str, dict[str, int], timedelta], ...] = (
    ("api: kill", "olga", "214 killed, 3 ended before; killed by olga: wrong dataset, ticket 170299",
     {"killed": 214, "too_late": 3}, timedelta(minutes=95)),
    ("api: retry", "pietro", "1,204 sent again; sent again by pietro: their quota was raised",
     {"sent_again": 1204}, timedelta(hours=5)),
    ("aso outbox retry", "olga", "37 messages for crab go again", {"messages": 37}, timedelta(hours=7)),
    ("clean retry", "pietro", "12 copies at T2_ES_IFCA are tried again", {"copies": 12}, timedelta(hours=20)),
)  # fmt: skip


def fill_runs(conn: Connection, now: datetime) -> None:
    """Let the cycles of a filled catalogue have done what their jobs say, and other DAGs and people too."""
    for statement in (_LINKS, _STEPS, _SUMMARIES, _ENDED):
        conn.execute(statement, {"now": now})
    random = Random(11)
    rows: list[tuple[Any, ...]] = []
    for dag_id, steps, every, count in _OTHERS:
        for number in range(count, 0, -1):
            at = now - number * every
            for task_id, sentence in steps:
                ended_at = at + timedelta(seconds=random.uniform(0.2, 9))
                run_id = f"scheduled__{now - number * every:%Y-%m-%dT%H:%M:%S}+00:00"
                rows.append((dag_id, run_id, task_id, "airflow", at, ended_at, sentence, Jsonb({})))
                at = ended_at
    rows += [
        (None, None, act, actor, now - ago, now - ago + timedelta(seconds=2), sentence, Jsonb(counts))
        for act, actor, sentence, counts, ago in _ACTS
    ]
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO step_run (dag_id, run_id, task_id, actor, started_at, ended_at, sentence, counts, outcome)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, 'success')",
            sorted(rows, key=lambda row: row[4]),
        )
    put_policy(conn, None, None, {"max_attempts": 4}, "olga")
    put_policy(conn, None, None, {"max_attempts": 3}, "pietro")
    once = restrict(conn, Mode.PAUSE, Area(source="T1_DE_KIT"), reason="tape library upgrade", by="pietro")
    lift(conn, [once.restriction_id], by="pietro")
