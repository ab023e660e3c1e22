"""Whether what somebody typed is the name of something. Reads only; each question is one look by a key."""

from __future__ import annotations

from collections.abc import Collection

from psycopg import Connection


def has_tasks(conn: Connection, username: str) -> bool:
    """Say whether there ever was a task of a user."""
    return conn.execute("SELECT FROM task WHERE username = %s LIMIT 1", (username,)).fetchone() is not None


def job_called(conn: Connection, job: str) -> str | None:
    """Return the sid of the FTS job with such an id, ours or that of FTS; None: there is none."""
    row = conn.execute(
        "SELECT sid FROM fts_job WHERE job_id = %(job)s::uuid OR sid = %(job)s::uuid", {"job": job}
    ).fetchone()
    return str(row[0]) if row else None


def own_file_in(conn: Connection, sid: str, usernames: Collection[str]) -> int | None:
    """Return the first file of some users in an FTS job; None: none of theirs is."""
    row = conn.execute(
        """
        SELECT t.id FROM fts_job j CROSS JOIN LATERAL unnest(j.transfer_ids) AS u(id) CROSS JOIN LATERAL (
            SELECT id, username FROM transfer WHERE id = u.id
            UNION ALL
            SELECT id, username FROM transfer_history WHERE id = u.id AND ended_at >= j.planned_at LIMIT 1
        ) t WHERE j.sid = %(sid)s::uuid AND t.username = ANY(%(usernames)s::text[]) LIMIT 1
        """,
        {"sid": sid, "usernames": list(usernames)},
    ).fetchone()
    return row[0] if row else None
