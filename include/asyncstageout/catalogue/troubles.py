"""What needs a person because a number is beyond its limit, or because somebody else reports it. Reads only.

As in ``catalogue.attention`` no question looks at files one by one, or at more than some thousands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta

from psycopg import Connection

from asyncstageout.catalogue.cleaning_views import failing_sites
from asyncstageout.catalogue.link_health import breakers
from asyncstageout.catalogue.publishing import stuck_blocks
from asyncstageout.catalogue.restrictions import open_restrictions
from asyncstageout.catalogue.rollups import uncounted_hours
from asyncstageout.core.alert_rules import Rule
from asyncstageout.core.alerts import About, Attention, Severity
from asyncstageout.core.planning import Link
from asyncstageout.core.restrictions import Restrictions

Rules = Mapping[str, Rule]

LEAST_ATTEMPTS = 20
"""Fewer within an hour say nothing of a link."""
OLDEST_FILES = 20_000
"""So many of the files that wait too long are looked at, the oldest first."""
DEAD_UP_TO = 1_000
INPUT_S = 86_400.0
"""A block whose input is copied first may wait so long."""
FRESH = timedelta(minutes=10)
"""What stageout_reconcile counted counts so long; it runs every two minutes."""
LAST_STEPS = 10_000
REPORT_KEPT = timedelta(hours=1)
"""A task without records of its own is thought well again, if Airflow reports nothing more of it."""
LATE_KEPT = timedelta(minutes=30)
LOOKED_BACK = timedelta(days=7)

_RECONCILED = f"""
SELECT counts, ended_at FROM step_run
WHERE id > (SELECT max(id) - {LAST_STEPS} FROM step_run) AND dag_id = 'stageout_reconcile'
    AND task_id = 'check' AND outcome = 'success' AND ended_at > %(since)s ORDER BY id DESC LIMIT 1
"""

# By the index transfer_to_kill.
_KILLS = """
SELECT j.fts_server, count(*), min(t.updated_at) FROM transfer t JOIN fts_job j ON j.sid = t.fts_job
WHERE t.state = 'KILL' AND t.updated_at < %(before)s GROUP BY 1 ORDER BY 1
"""

_SCORES = """
SELECT source, destination, sum(succeeded), sum(failed) FROM link_window WHERE minute > %(since)s
GROUP BY 1, 2 HAVING sum(succeeded + failed) >= %(least)s
    AND sum(failed) > %(share)s * sum(succeeded + failed) ORDER BY 1, 2
"""

# By the index transfer_due.
_LATE = """
SELECT source, destination, count(*), min(due_at) FROM (
    SELECT source, destination, due_at FROM transfer
    WHERE state IN ('NEW', 'RETRY') AND due_at < %(before)s AND driver IS NULL ORDER BY due_at LIMIT
        %(at_most)s
) t GROUP BY 1, 2 ORDER BY 1, 2
"""

_RECEIVERS = """
SELECT s.name, h.failing_since, h.problem, h.needs_person
FROM subscription_health h JOIN subscription s ON s.id = h.subscription
WHERE s.state = 'active' AND (h.needs_person OR h.failing_since < %(before)s) ORDER BY s.name
"""

_DEAD = """
SELECT s.name, d.letters, d.since FROM subscription s CROSS JOIN LATERAL (
    SELECT count(*) AS letters, min(dead_at) AS since FROM (
        SELECT dead_at FROM outbox WHERE subscription = s.id AND dead_at IS NOT NULL LIMIT %(at_most)s
    ) o
) d WHERE d.letters > 0 ORDER BY s.name
"""

# A failure that its step recorded is found there; one after which the task went well is over.
_FAILED = f"""
WITH recent AS MATERIALIZED (
    SELECT dag_id, run_id, task_id, ended_at, outcome FROM step_run
    WHERE id > (SELECT max(id) - {LAST_STEPS} FROM step_run) AND ended_at > %(since)s
)
SELECT r.dag_id, r.run_id, r.task_id, r.map_index, r.sentence, r.reported_at FROM airflow_report r
WHERE r.kind = 'failed' AND r.reported_at > %(since)s
    AND NOT EXISTS (SELECT FROM recent s WHERE s.dag_id = r.dag_id AND s.task_id = r.task_id
        AND (s.run_id = r.run_id AND s.outcome = 'failed'
            OR s.outcome = 'success' AND s.ended_at > r.reported_at))
ORDER BY r.reported_at
"""

_LATE_RUNS = """
SELECT dag_id, run_id, sentence, reported_at FROM airflow_report
WHERE kind = 'late' AND reported_at > %s ORDER BY reported_at
"""


def _reconciled(conn: Connection, now: datetime, _: Rules) -> Iterator[Attention]:
    row = conn.execute(_RECONCILED, {"since": now - FRESH}).fetchone()
    counts, at = row or ({}, None)
    if count := counts.get("unknown_jobs"):
        yield Attention(
            "jobs-unknown",
            Severity.WARNING,
            f"FTS has {count:,} jobs of ours that the catalogue does not know",
            About("jobs"),
            at,
            of="jobs",
        )
    if count := counts.get("leaked_files"):
        yield Attention(
            "files-leaked",
            Severity.URGENT,
            f"{count:,} files have no next step",
            About("nothing"),
            at,
            "`aso audit` names them.",
            of="files",
        )


def _kills(conn: Connection, now: datetime, rules: Rules) -> Iterator[Attention]:
    for server, count, since in conn.execute(_KILLS, {"before": now - _limit(rules, "kills-hanging")}):
        yield Attention(
            "kills-hanging",
            Severity.WARNING,
            f"{count:,} killed files have not ended at FTS server {server}",
            About("server", (server,)),
            since,
        )


def _failing_links(conn: Connection, now: datetime, rules: Rules) -> Iterator[Attention]:
    values = {
        "since": now - timedelta(hours=1),
        "least": LEAST_ATTEMPTS,
        "share": _value(rules, "link-failing"),
    }
    broken = breakers(conn)
    for source, destination, succeeded, failed in conn.execute(_SCORES, values):
        link = Link(source, destination)
        # One with an open breaker is found as broken.
        if link not in broken:
            yield Attention(
                "link-failing",
                Severity.WARNING,
                f"{link}: {failed:,} of {succeeded + failed:,} attempts failed within an hour",
                About("link", link),
            )


def _late_files(conn: Connection, now: datetime, rules: Rules) -> Iterator[Attention]:
    values = {"before": now - _limit(rules, "files-late"), "at_most": OLDEST_FILES}
    rows = conn.execute(_LATE, values).fetchall()
    broken, restrictions = breakers(conn), Restrictions(open_restrictions(conn), now)
    for source, destination, count, since in rows:
        link = Link(source, destination)
        if link not in broken and not restrictions.stops(*link):
            yield Attention(
                "files-late",
                Severity.WARNING,
                f"{link}: {count:,} files wait since {since:%Y-%m-%d %H:%M} UTC",
                About("link", link),
                since,
            )


def _publication(conn: Connection, _: datetime, rules: Rules) -> Iterator[Attention]:
    for one in stuck_blocks(conn, _value(rules, "publication-stuck"), INPUT_S):
        yield Attention(
            "publication-stuck",
            Severity.WARNING,
            f"{one.dbs} has not taken {one.blocks:,} blocks: {one.reason or 'nobody told it of them'}",
            About("nothing"),
            one.since,
            of=one.dbs,
        )


def _cleaning(conn: Connection, now: datetime, rules: Rules) -> Iterator[Attention]:
    before = now - _limit(rules, "cleaning-failing")
    for one in failing_sites(conn):
        if one.failing_since < before:
            yield Attention(
                "cleaning-failing",
                Severity.WARNING,
                f"Nothing can be deleted at {one.site}: {one.reason}",
                About("site", (one.site,)),
                one.failing_since,
            )


def _subscribers(conn: Connection, now: datetime, rules: Rules) -> Iterator[Attention]:
    rows = conn.execute(_RECEIVERS, {"before": now - _limit(rules, "receiver-failing")})
    for name, since, problem, needs_person in rows:
        yield Attention(
            "receiver-failing",
            Severity.WARNING,
            f"Subscriber {name} takes nothing: {problem}",
            About("nothing"),
            since,
            f"Then `aso subscriptions resume {name}`." if needs_person else "",
            of=name,
        )
    for name, letters, since in conn.execute(_DEAD, {"at_most": DEAD_UP_TO}):
        more = "at least " if letters == DEAD_UP_TO else ""
        yield Attention(
            "dead-letters",
            Severity.WARNING,
            f"Subscriber {name} has {more}{letters:,} dead letters",
            About("nothing"),
            since,
            of=name,
        )


def _statistics(conn: Connection, now: datetime, rules: Rules) -> Iterator[Attention]:
    row = conn.execute("SELECT min(hour) FROM rolled_hour").fetchone()
    if row is None or row[0] is None:
        return
    hour = now.replace(minute=0, second=0, microsecond=0)
    end = min(hour, now - _limit(rules, "statistics-missing")).replace(minute=0, second=0, microsecond=0)
    missing = uncounted_hours(conn, max(row[0], hour - LOOKED_BACK), end)
    if missing:
        yield Attention(
            "statistics-missing",
            Severity.WARNING,
            f"Not counted: {len(missing):,} hours, the first {missing[0]:%Y-%m-%d %H:%M} UTC",
            About("nothing"),
            missing[0],
            "Is stageout_statistics paused?",
            of="statistics",
        )


def _database(conn: Connection, _: datetime, rules: Rules) -> Iterator[Attention]:
    limit = rules["database-size"].limit
    if limit is None or limit.value is None:
        return
    (size_bytes,) = conn.execute("SELECT pg_database_size(current_database())").fetchone() or (0,)
    if size_bytes > limit.value:
        yield Attention(
            "database-size",
            Severity.URGENT if size_bytes > 1.2 * limit.value else Severity.WARNING,
            f"The catalogue has {size_bytes / 1e9:,.1f} GB; it should not exceed {limit.value / 1e9:,.1f} GB",
            About("nothing"),
            of="database",
        )


def _reports(conn: Connection, now: datetime, _: Rules) -> Iterator[Attention]:
    for dag_id, run_id, task_id, map_index, sentence, at in conn.execute(
        _FAILED, {"since": now - REPORT_KEPT}
    ):
        yield Attention(
            "task-failed",
            Severity.WARNING,
            f"{dag_id}.{task_id} failed: {sentence}",
            About("step", (dag_id, run_id, task_id, str(map_index))),
            at,
            of=f"{dag_id}.{task_id}",
        )
    for dag_id, run_id, sentence, at in conn.execute(_LATE_RUNS, (now - LATE_KEPT,)):
        yield Attention("run-late", Severity.WARNING, sentence, About("run", (dag_id, run_id)), at, of=dag_id)


def _value(rules: Rules, name: str) -> float:
    limit = rules[name].limit
    assert limit is not None  # noqa: S101 - the rule has a limit with a default
    assert limit.value is not None  # noqa: S101
    return limit.value


def _limit(rules: Rules, name: str) -> timedelta:
    return timedelta(seconds=_value(rules, name))


LOOKS: tuple[Callable[[Connection, datetime, Rules], Iterator[Attention]], ...] = (
    _reconciled, _kills, _failing_links, _late_files, _publication, _cleaning, _subscribers, _statistics,
    _database, _reports,
)  # fmt: skip
"""Every kind with a limit. A new one is one more function."""
