"""What needs a person now, as far as the catalogue knows: each kind is one small question. Reads only.

No question looks at the files that wait or were moved one by one; what it costs follows the number of links,
servers, jobs in trouble and the last :data:`LAST_STEPS` steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta

from psycopg import Connection

from asyncstageout.catalogue import troubles
from asyncstageout.catalogue.fts_servers import FORGOTTEN_AFTER_S, server_views
from asyncstageout.catalogue.health import missing_partitions, strays
from asyncstageout.catalogue.identity_holds import holds
from asyncstageout.catalogue.link_health import breakers
from asyncstageout.catalogue.repairs import unconfirmed_jobs, unpolled_jobs
from asyncstageout.catalogue.restrictions import open_restrictions
from asyncstageout.core.alert_rules import RULES, Rule
from asyncstageout.core.alerts import About, Attention, Severity
from asyncstageout.core.identities import SERVICE
from asyncstageout.core.restrictions import PARTICIPLES, Restriction

LAST_STEPS = 10_000
"""Among so many of the last steps the last of each kind is looked for."""
IDLE = timedelta(minutes=10)
"""A cycle starts every minute, as long as anything waits."""
OVERDUE = timedelta(hours=1)
"""A task's longest time is 15 minutes (the DAGs' ``execution_timeout``)."""
ENDS_SOON = timedelta(hours=2)
FORGOTTEN = timedelta(days=14)
"""A restriction without an end that is older than this may have been forgotten."""
LONG_OPEN = timedelta(hours=6)
SHORT_LIFE = timedelta(days=7)
SEEN_LATELY = timedelta(days=1)
"""A credential that nobody looked at for longer has no files."""
DAYS_AHEAD = 2


def attention(conn: Connection, now: datetime, rules: Mapping[str, Rule] = RULES) -> list[Attention]:
    """Return all that needs a person, the most urgent first, then the oldest.

    Args:
        rules: their limits, and which are off.
    """
    found = [one for look in LOOKS for one in look(conn, now)]
    found += [one for look in troubles.LOOKS for one in look(conn, now, rules)]
    found = [one for one in found if not rules[one.rule].is_off]
    return sorted(found, key=lambda one: (-one.severity, one.since or now))


# Of the last run of each task, the last try of each of its parts.
_STEPS = f"""
WITH recent AS MATERIALIZED (
    SELECT * FROM step_run
    WHERE id > (SELECT max(id) - {LAST_STEPS} FROM step_run) AND dag_id LIKE 'stageout%'
        AND ended_at IS NOT NULL
), last_run AS (
    SELECT DISTINCT ON (dag_id, task_id) dag_id, task_id, run_id FROM recent ORDER BY dag_id, task_id, id DESC
), last_try AS (
    SELECT DISTINCT ON (dag_id, task_id, map_index) r.*
    FROM recent r JOIN last_run USING (dag_id, task_id, run_id) ORDER BY dag_id, task_id, map_index, id DESC
)
SELECT dag_id, run_id, task_id, map_index, sentence, ended_at FROM last_try WHERE outcome = 'failed'
ORDER BY ended_at
"""

_OVERDUE_STEPS = """
SELECT dag_id, run_id, task_id, map_index, started_at FROM step_run
WHERE ended_at IS NULL AND started_at < %(before)s AND dag_id IS NOT NULL ORDER BY started_at LIMIT 20
"""

_IDLE = f"""
SELECT (SELECT min(due_at) FROM transfer
        WHERE state IN ('NEW', 'RETRY') AND driver IS NULL AND due_at <= now()),
    (SELECT max(ended_at) FROM step_run WHERE id > (SELECT max(id) - {LAST_STEPS} FROM step_run)
        AND dag_id = 'stageout_transfer' AND task_id = 'collect' AND outcome = 'success')
"""

_CREDENTIALS = """
SELECT identity, expires_at, problem, checked_at FROM credential
WHERE checked_at > %(seen)s AND (problem IS NOT NULL OR expires_at < %(soon)s) ORDER BY expires_at, identity
"""

_SITES = """
SELECT count(*), min(failing_since), min(site), (array_agg(problem ORDER BY failing_since))[1]
FROM site_load WHERE problem IS NOT NULL
"""

_OBJECTS = """
SELECT source, count(*), max(taken_at), (array_agg(problem ORDER BY taken_at DESC))[1] FROM intake_object
WHERE problem IS NOT NULL AND taken_at > %(since)s GROUP BY source ORDER BY source
"""


def _failed_steps(conn: Connection, _: datetime) -> Iterator[Attention]:
    for dag_id, run_id, task_id, map_index, sentence, ended_at in conn.execute(_STEPS):
        needs_person = "NeedsAPerson" in (sentence or "")
        yield Attention(
            "step-failed",
            Severity.URGENT if needs_person else Severity.WARNING,
            f"{dag_id}.{task_id} failed: {(sentence or 'no reason').removeprefix('NeedsAPerson: ')}",
            About("step", (dag_id, run_id, task_id, str(map_index))),
            ended_at,
            "The log of the task says more.",
            of=f"{dag_id}.{task_id}",
        )


def _overdue_steps(conn: Connection, now: datetime) -> Iterator[Attention]:
    rows = conn.execute(_OVERDUE_STEPS, {"before": now - OVERDUE})
    for dag_id, run_id, task_id, map_index, started_at in rows:
        yield Attention(
            "step-silent",
            Severity.WARNING,
            f"{dag_id}.{task_id} has not reported back",
            About("step", (dag_id, run_id, task_id, str(map_index))),
            started_at,
            "stageout_reconcile closes its record; look why its process died.",
            of=f"{dag_id}.{task_id}",
        )


def _idle(conn: Connection, now: datetime) -> Iterator[Attention]:
    oldest, collected_at = conn.execute(_IDLE).fetchone() or (None, None)
    if oldest is None or now - oldest < IDLE or (collected_at is not None and now - collected_at < IDLE):
        return
    yield Attention(
        "nothing-collected",
        Severity.URGENT,
        "Files wait and no cycle has collected any"
        + (f" since {collected_at:%H:%M} UTC" if collected_at else ""),
        About("nothing"),
        collected_at or oldest,
        "Is stageout_transfer paused, or the scheduler down? `aso doctor` looks.",
        of="stageout_transfer",
    )


def _servers(conn: Connection, now: datetime) -> Iterator[Attention]:
    views = server_views(conn)
    nobody = not any(view.server.is_usable for view in views)
    for view in views:
        server, about = view.server, About("server", (view.server.name,))
        if server.failing_since and server.state != "down":
            yield Attention(
                "fts-server-down",
                Severity.URGENT if nobody else Severity.WARNING,
                f"FTS server {server.sentence()}: {server.problem}",
                about,
                server.failing_since,
            )
        elif server.state != "up":
            rest = f"; files still in its jobs: {view.open_files:,}" if view.open_files else ""
            yield Attention(
                "fts-server-away",
                Severity.URGENT if nobody else Severity.NOTE,
                f"FTS server {server.sentence()}: {view.reason or 'no reason given'}{rest}",
                about,
                view.updated_at,
            )
        elif view.open_jobs and (
            view.checked_at is None or now - view.checked_at > timedelta(seconds=FORGOTTEN_AFTER_S)
        ):
            yield Attention(
                "fts-server-unasked",
                Severity.WARNING,
                f"Nobody asks FTS server {server.name} about its {_many(view.open_jobs, 'open job')}",
                about,
                view.checked_at,
                "Is stageout_sense paused?",
            )


def _jobs(conn: Connection, _: datetime) -> Iterator[Attention]:
    if count := unconfirmed_jobs(conn):
        yield Attention(
            "jobs-unconfirmed",
            Severity.WARNING,
            f"{_many(count, 'job')} that FTS has not confirmed for 10 minutes",
            About("jobs"),
            of="jobs",
        )
    if count := unpolled_jobs(conn):
        yield Attention(
            "jobs-unpolled",
            Severity.WARNING, f"{_many(count, 'job')} at FTS that nobody asks about", About("jobs"),
            of="jobs",
        )  # fmt: skip


def _breakers(conn: Connection, now: datetime) -> Iterator[Attention]:
    for link, breaker in breakers(conn).items():
        is_long = now - breaker.opened_at > LONG_OPEN
        yield Attention(
            "link-broken",
            Severity.WARNING if is_long else Severity.NOTE,
            f"{link}: {breaker.sentence(now)}",
            About("link", link),
            breaker.opened_at,
            "Most attempts fail: ask the site at fault, or pause the link with a reason.",
        )


def _restrictions(conn: Connection, now: datetime) -> Iterator[Attention]:
    for one in open_restrictions(conn):
        what = f"{one.what()[:1].upper()}{one.what()[1:]}"
        said = f"{what} is {PARTICIPLES[one.mode]} by {one.author}: {one.reason}"
        about = _about(one)
        subject = "/".join(about.names) or "everything"
        if not one.is_in_force(now):
            continue
        if one.ends_at and one.ends_at - now < ENDS_SOON:
            yield Attention(
                "restriction-ending",
                Severity.NOTE, f"{said} (ends at {one.ends_at:%H:%M} UTC)", about, one.starts_at,
                "Is its reason gone by then? Else set it again.", of=subject,
            )  # fmt: skip
        elif one.ends_at is None and now - one.starts_at > FORGOTTEN:
            yield Attention(
                "restriction-forgotten",
                Severity.WARNING, f"{said} (without an end)", about, one.starts_at,
                "Is it still wanted? Else lift it.", of=subject,
            )  # fmt: skip


def _about(one: Restriction) -> About:
    named = [name for name in (one.site, one.source, one.destination) if name]
    return About(("nothing", "site", "link")[len(named)], tuple(named))


def _credentials(conn: Connection, now: datetime) -> Iterator[Attention]:
    values = {"seen": now - SEEN_LATELY, "soon": now + SHORT_LIFE}
    for identity, expires_at, problem, checked_at in conn.execute(_CREDENTIALS, values):
        is_over = expires_at is not None and expires_at <= now
        ends = f"ends on {expires_at:%Y-%m-%d %H:%M} UTC" if expires_at else "is missing"
        yield Attention(
            "credential-ending",
            Severity.WARNING if is_over or problem else Severity.NOTE,
            f"Credential of {identity} {'ended' + ends[4:] if is_over else ends}"
            + (f": {problem}" if problem else ""),
            About("credential", (identity,)),
            checked_at,
            # Of users there may be thousands.
            of=identity if identity == SERVICE else "users",
        )


def _held(conn: Connection, _: datetime) -> Iterator[Attention]:
    held = holds(conn)
    if held:
        rest = f", and {len(held) - 1:,} more" if len(held) > 1 else ""
        yield Attention(
            "identity-held",
            Severity.WARNING, f"Files wait: {held[0].sentence()}{rest}", About("credential"),
            min(one.held_at for one in held), of="identities",
        )  # fmt: skip


def _descriptions(conn: Connection, _: datetime) -> Iterator[Attention]:
    count, since, site, problem = conn.execute(_SITES).fetchone() or (0, None, "", "")
    if count:
        rest = f" (and {count - 1:,} more sites)" if count > 1 else ""
        yield Attention(
            "site-description",
            Severity.NOTE, f"The description of {site} cannot be used{rest}: {problem}", About("sites"),
            since, of="sites",
        )  # fmt: skip


def _intake(conn: Connection, now: datetime) -> Iterator[Attention]:
    for source, count, taken_at, problem in conn.execute(_OBJECTS, {"since": now - timedelta(days=1)}):
        yield Attention(
            "intake-refused",
            Severity.WARNING, f"{_many(count, 'object')} of source {source} put aside: {problem}",
            About("nothing"), taken_at, of=source,
        )  # fmt: skip


def _partitions(conn: Connection, now: datetime) -> Iterator[Attention]:
    if missing := missing_partitions(conn, now.date(), DAYS_AHEAD):
        yield Attention(
            "partitions-missing",
            Severity.WARNING, f"Partitions are missing: {', '.join(missing[:3])}", About("nothing"), None,
            "`aso migrate` makes them; does stageout_transfer run?", of="partitions",
        )  # fmt: skip
    if count := strays(conn):
        yield Attention(
            "partitions-stray",
            Severity.NOTE, f"In the default partitions: {_many(count, 'row')}", About("nothing"), None,
            "`aso migrate` moves them.", of="partitions",
        )  # fmt: skip


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


LOOKS: tuple[Callable[[Connection, datetime], Iterator[Attention]], ...] = (
    _failed_steps, _overdue_steps, _idle, _servers, _jobs, _breakers, _restrictions, _credentials, _held,
    _descriptions, _intake, _partitions,
)  # fmt: skip
"""Every kind of thing that is looked for, with those of ``catalogue.troubles``, which have limits."""
