"""Numbers for a monitoring system: few, with few labels, at a cost that does not grow with the queue."""

from __future__ import annotations

from typing import NamedTuple

from psycopg import Connection

from asyncstageout.catalogue.cleaning import SITES_WITH_COPIES
from asyncstageout.catalogue.fts_servers import AWAY

COUNTED_UP_TO = 100_000
"""Waiting files are counted up to here; above, Postgres's own estimate is told if it is larger."""
COPIES_COUNTED_UP_TO = 1_000
"""Temporary copies that are due are counted up to here at each site."""
RECENT_MINUTES = 5
LAST_STEPS = 10_000
"""Among so many of the last steps the last good one of each kind is looked for."""

_METRICS = f"""
WITH RECURSIVE {SITES_WITH_COPIES}, copies AS (
    SELECT d.* FROM copy_site s CROSS JOIN LATERAL (
        SELECT count(*) AS copies, min(due_at) AS due_at FROM (
            SELECT due_at FROM cleaning c WHERE c.source = s.site AND due_at <= now() AND state = 'WAITING'
            ORDER BY due_at LIMIT {COPIES_COUNTED_UP_TO}
        ) due
    ) d
), waiting AS (
    SELECT count(*) AS files FROM (
        SELECT 1 FROM transfer WHERE state IN ('NEW', 'RETRY') LIMIT {COUNTED_UP_TO}
    ) t
), ended AS (
    SELECT state, count(*) AS files FROM transfer
    WHERE ended_at > now() - interval '{RECENT_MINUTES} min' GROUP BY state
), jobs AS (
    SELECT fts_server, state, count(*) AS jobs, sum(open_files) AS files FROM fts_job
    WHERE state IN ('PLANNED', 'SUBMITTED') GROUP BY fts_server, state
)
SELECT 'files_waiting', '', '', CASE WHEN files < {COUNTED_UP_TO} THEN files
    ELSE (SELECT greatest(files, reltuples) FROM pg_class WHERE oid = 'transfer_pending'::regclass) END
FROM waiting
UNION ALL SELECT 'wait_seconds', '', '', coalesce(extract(epoch FROM now() - min(due_at)), 0)
    FROM transfer WHERE state IN ('NEW', 'RETRY') AND due_at <= now()
UNION ALL SELECT 'files_ended_recently', state::text, '', coalesce(files, 0)
    FROM unnest('{{DONE,FAILED,KILLED}}'::transfer_state[]) AS state LEFT JOIN ended USING (state)
UNION ALL SELECT 'fts_jobs', fts_server, state::text, jobs FROM jobs
UNION ALL SELECT 'files_in_fts', fts_server, state::text, files FROM jobs
UNION ALL SELECT 'fts_server_usable', name, '',
    CASE WHEN state = 'up' AND name NOT IN ({AWAY}) THEN 1 ELSE 0 END FROM fts_server
UNION ALL SELECT 'links_broken', '', '', count(*) FROM link_breaker
UNION ALL SELECT 'identities_held', '', '', count(*) FROM identity_hold
UNION ALL SELECT 'restrictions', m.mode::text, '', count(r.id)
    FROM unnest(enum_range(NULL::restriction_mode)) AS m(mode) LEFT JOIN restriction r
        ON r.mode = m.mode AND r.lifted_at IS NULL AND r.starts_at <= now()
        AND (r.ends_at IS NULL OR r.ends_at > now())
    GROUP BY m.mode
UNION ALL SELECT 'outbox_messages', s.name, 'pending', o.messages
    FROM subscription s CROSS JOIN LATERAL (SELECT count(*) AS messages FROM (
        SELECT FROM outbox WHERE subscription = s.id AND dead_at IS NULL LIMIT {COUNTED_UP_TO}) m) o
UNION ALL SELECT 'outbox_messages', s.name, 'dead', o.messages
    FROM subscription s CROSS JOIN LATERAL (SELECT count(*) AS messages FROM (
        SELECT FROM outbox WHERE subscription = s.id AND dead_at IS NOT NULL LIMIT {COUNTED_UP_TO}) m) o
UNION ALL SELECT 'outbox_wait_seconds', s.name, '', greatest(extract(epoch FROM now() - (
        SELECT min(due_at) FROM outbox WHERE subscription = s.id AND dead_at IS NULL)), 0) FROM subscription s
UNION ALL SELECT 'subscription_well', s.name, '', CASE WHEN s.state = 'active' AND NOT EXISTS (
        SELECT FROM subscription_health h WHERE h.subscription = s.id) THEN 1 ELSE 0 END FROM subscription s
UNION ALL SELECT 'copies_due', '', '', coalesce(sum(copies), 0) FROM copies
UNION ALL SELECT 'copy_wait_seconds', '', '', coalesce(extract(epoch FROM now() - min(due_at)), 0) FROM copies
UNION ALL SELECT 'copies_given_up', source, '', copies FROM (
    SELECT source, count(*) AS copies FROM cleaning WHERE state = 'FAILED' GROUP BY source
    ORDER BY copies DESC, source LIMIT 20) worst
UNION ALL SELECT 'storages_silent', '', '', count(*) FROM cleaning_site WHERE failing_since IS NOT NULL
UNION ALL SELECT 'step_age_seconds', dag_id, task_id, extract(epoch FROM now() - max(ended_at))
    FROM step_run WHERE id > (SELECT max(id) - {LAST_STEPS} FROM step_run) AND outcome = 'success'
        AND dag_id LIKE 'stageout%' GROUP BY dag_id, task_id
UNION ALL SELECT 'blocks', dbs, lower(state::text), count(*) FROM (
    SELECT dbs, state FROM block WHERE state IN ('OPEN', 'CLOSED') LIMIT {COUNTED_UP_TO}) b
    GROUP BY dbs, state
UNION ALL SELECT 'block_wait_seconds', d.dbs, '', extract(epoch FROM now() - d.closed_at) FROM (
    SELECT dbs, min(closed_at) AS closed_at FROM block WHERE state = 'CLOSED' GROUP BY dbs) d
UNION ALL SELECT 'alerts', rule, CASE severity WHEN 3 THEN 'urgent' WHEN 2 THEN 'warning' ELSE 'note' END,
    count(*) FROM alert WHERE state = 'open' GROUP BY rule, severity
UNION ALL SELECT 'alert_messages_waiting', c.name, '', count(m.id)
    FROM alert_channel c LEFT JOIN alert_message m ON m.channel = c.name AND m.told_at IS NULL
        AND m.dropped_at IS NULL GROUP BY c.name
UNION ALL SELECT 'steps_failed_recently', dag_id, task_id, count(*) FROM step_run
    WHERE id > (SELECT max(id) - {LAST_STEPS} FROM step_run) AND outcome = 'failed'
        AND dag_id LIKE 'stageout%' AND ended_at > now() - interval '{RECENT_MINUTES} min'
    GROUP BY dag_id, task_id
UNION ALL SELECT 'database_size_bytes', '', '', pg_database_size(current_database())
ORDER BY 1, 2, 3
"""


class Measurement(NamedTuple):
    """One number, and up to two labels; unused ones are empty."""

    name: str
    first: str
    second: str
    value: float


def measurements(conn: Connection) -> list[Measurement]:
    """Return all numbers, those of a name together."""
    return [
        Measurement(name, first, second, float(value))
        for name, first, second, value in conn.execute(_METRICS)
    ]
