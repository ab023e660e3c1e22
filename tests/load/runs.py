"""What ran in a busy month, for :mod:`load.pages`: cycles, steps, FTS jobs, changes and acts."""

from __future__ import annotations

from typing import Any

from psycopg import Connection

from load.bodies import SITES

DAYS = 30
CYCLES_A_DAY = 2_880
STEPS_A_DAY = 100_000
"""Most are requests that hand files in."""
JOBS_A_DAY = 20_000
OPEN_JOBS = 5_000

_CYCLES = """
INSERT INTO cycle (dag_id, run_id, created_at, collected_at, grouped_at, summarised_at)
SELECT 'stageout_transfer', 'scheduled__' || n, at, at, at, at
FROM generate_series(1, %(cycles)s) n CROSS JOIN LATERAL (
    SELECT now() - (%(cycles)s - n) * interval '30 s' AS at) a
"""

# Each links' row of the last two weeks, as the retention keeps them.
_LINKS = """
INSERT INTO cycle_link (cycle_id, source, destination, users, in_flight, room, held)
SELECT c.id, (%(sites)s::text[])[1 + (c.id + k) %% 59], (%(sites)s::text[])[60 - k], 3, 100, 900,
    CASE WHEN k = 0 THEN 'paused by olga: tape' END
FROM cycle c CROSS JOIN generate_series(0, 9) k
WHERE c.dag_id = 'stageout_transfer' AND c.created_at > now() - interval '14 days'
"""

# One in 35 is of a cycle's collect, as many of its other steps and of other DAGs; the rest hands files in.
_STEPS = """
INSERT INTO step_run (dag_id, run_id, task_id, actor, started_at, ended_at, outcome, sentence, counts)
SELECT CASE WHEN k < 6 THEN d.dags[k + 1] END, CASE WHEN k < 6 THEN 'scheduled__' || n / 35 END,
    CASE WHEN k < 6 THEN d.tasks[k + 1] WHEN n %% 35000 = 34 THEN 'api: kill' ELSE 'api: submit' END,
    CASE WHEN k < 6 THEN 'airflow' WHEN n %% 35000 = 34 THEN 'olga' ELSE 'crab' END, at, at + interval '1 s',
    CASE WHEN n %% 3500 = 0 THEN 'failed' ELSE 'success' END, '100 files came in', '{"files": 100}'
FROM generate_series(1, %(steps)s) n CROSS JOIN LATERAL (
    SELECT n %% 35 AS k, now() - (%(steps)s - n) * make_interval(secs => 86400.0 / %(a_day)s) AS at) a
CROSS JOIN (SELECT ARRAY['stageout_transfer', 'stageout_transfer', 'stageout_transfer', 'stageout_sense',
        'stageout_publish', 'stageout_reconcile'] AS dags,
    ARRAY['collect', 'group', 'summarise', 'update_catalogue', 'assemble', 'check'] AS tasks) d
"""

_JOBS = """
INSERT INTO fts_job (sid, job_id, fts_server, cycle_id, source, destination, identity, activity, priority, params,
    transfer_ids, open_files, size_bytes, state, fts_state, planned_at, submitted_at, ended_at, polled_at,
    next_poll_at, source_storage, source_protocol, destination_storage, destination_protocol)
SELECT gen_random_uuid(), gen_random_uuid(), 'fts3_default', c.first + (n * 1.0 / %(jobs)s * (%(cycles)s - 1))::bigint,
    s.name, d.name, 'service', 'default', 3, '{}', ARRAY(SELECT generate_series(n * 20, n * 20 + 19)),
    CASE WHEN o THEN 20 ELSE 0 END, 20000000000, (CASE WHEN o THEN 'SUBMITTED' ELSE 'ENDED' END)::job_state,
    CASE WHEN o THEN 'ACTIVE' ELSE 'FINISHED' END, at, at, CASE WHEN NOT o THEN at + interval '5 min' END, now(),
    now(), s.storage_id, 'davs', d.storage_id, 'davs'
FROM generate_series(1, %(jobs)s) n
CROSS JOIN LATERAL (SELECT n > %(jobs)s - %(open)s AS o,
    now() - (%(jobs)s - n) * make_interval(secs => 86400.0 * 30 / %(jobs)s) AS at) a
CROSS JOIN (SELECT min(id) AS first FROM cycle WHERE dag_id = 'stageout_transfer') c
JOIN site s ON s.name = (%(sites)s::text[])[1 + n %% 59] JOIN site d ON d.name = (%(sites)s::text[])[60 - n %% 17]
"""

_CHANGES = """
INSERT INTO config_change (at, actor, object, before, after)
SELECT now() - (20000 - n) * interval '2 min', 'cric', 'site', '{"name": "T2_IT_Bari", "storage_id": 1}',
    '{"name": "T2_IT_Bari", "storage_id": 2}' FROM generate_series(1, 20000) n
"""


def fill_runs(conn: Connection) -> dict[str, str]:
    """Fill an otherwise seeded catalogue; return places of one job and one cycle."""
    values: dict[str, Any] = {
        "cycles": DAYS * CYCLES_A_DAY, "steps": DAYS * STEPS_A_DAY, "a_day": STEPS_A_DAY, "sites": SITES,
        "jobs": DAYS * JOBS_A_DAY, "open": OPEN_JOBS,
    }  # fmt: skip
    for statement in (_CYCLES, _LINKS, _STEPS, _JOBS, _CHANGES):
        conn.execute(statement, values if "%" in statement else None)
    for table in ("cycle", "cycle_link", "step_run", "fts_job", "config_change"):
        conn.execute(f"VACUUM ANALYZE {table}")
    row = conn.execute(
        "SELECT sid::text, cycle_id::text FROM fts_job WHERE state = 'SUBMITTED' ORDER BY planned_at LIMIT 1"
    ).fetchone()
    assert row is not None
    return {"job": row[0], "cycle": row[1]}
