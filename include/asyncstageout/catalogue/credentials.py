"""What is known of credentials: until when they are good, and who needs them. Never a credential itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from psycopg import Connection

FORGOTTEN_AFTER_DAYS = 60


class WaitingFiles(NamedTuple):
    """Files that wait, of one identity on one link."""

    source: str
    destination: str
    username: str
    activity: str
    identity: str
    """Whose files they are; the policy says whether they travel in his name."""
    files: int


class OpenFiles(NamedTuple):
    """Files under way in one identity's name at one FTS."""

    fts_server: str
    identity: str
    files: int


@dataclass(frozen=True, slots=True)
class CredentialNote:
    """What the last look at an identity's credential brought."""

    identity: str
    kind: str | None = None
    subject: str | None = None
    fqans: tuple[str, ...] = ()
    expires_at: datetime | None = None
    problem: str | None = None
    """Why there is none, or why it ends soon."""
    checked_at: datetime | None = None
    waiting_files: int = 0


@dataclass(frozen=True, slots=True)
class DelegationNote:
    """What the last look at a delegation brought."""

    fts_server: str
    identity: str
    delegation_id: str | None = None
    expires_at: datetime | None = None
    problem: str | None = None


def waiting_files(conn: Connection) -> list[WaitingFiles]:
    """Count what waits, by link, user, activity and identity."""
    rows = conn.execute(
        "SELECT source, destination, username, activity, identity, count(*) FROM transfer"
        " WHERE state IN ('NEW', 'RETRY') GROUP BY 1, 2, 3, 4, 5"
    )
    return [WaitingFiles(*row) for row in rows]


def open_files(conn: Connection) -> list[OpenFiles]:
    """Count what is under way, by FTS and by the identity in whose name it is."""
    rows = conn.execute(
        "SELECT fts_server, identity, sum(open_files)::bigint FROM fts_job"
        " WHERE state IN ('PLANNED', 'SUBMITTED') GROUP BY 1, 2 ORDER BY 1, 2"
    )
    return [OpenFiles(*row) for row in rows]


def note_credentials(conn: Connection, notes: Iterable[CredentialNote]) -> None:
    """Keep what was found; where there was nothing, what was known before stays beside the problem."""
    with conn.cursor() as cursor:
        cursor.executemany(
            """
            INSERT INTO credential AS c (identity, kind, subject, fqans, expires_at, problem)
            VALUES (%s, %s, %s, %s, %s, %s)
            ON CONFLICT (identity) DO UPDATE SET checked_at = now(), problem = excluded.problem,
                kind = coalesce(excluded.kind, c.kind), subject = coalesce(excluded.subject, c.subject),
                fqans = CASE WHEN excluded.subject IS NULL THEN c.fqans ELSE excluded.fqans END,
                expires_at = coalesce(excluded.expires_at, c.expires_at)
            """,
            [
                (note.identity, note.kind, note.subject, list(note.fqans), note.expires_at, note.problem)
                for note in sorted(notes, key=lambda note: note.identity)
            ],
        )


def note_delegations(conn: Connection, notes: Iterable[DelegationNote]) -> None:
    """Keep what was found; where FTS was not heard, what was known before stays beside the problem."""
    with conn.cursor() as cursor:
        cursor.executemany(
            """
            INSERT INTO delegation AS d (fts_server, identity, delegation_id, expires_at, problem)
            VALUES (%s, %s, %s, %s, %s)
            ON CONFLICT (fts_server, identity) DO UPDATE SET checked_at = now(), problem = excluded.problem,
                delegation_id = coalesce(excluded.delegation_id, d.delegation_id),
                expires_at = coalesce(excluded.expires_at, d.expires_at)
            """,
            [
                (note.fts_server, note.identity, note.delegation_id, note.expires_at, note.problem)
                for note in sorted(notes, key=lambda note: (note.fts_server, note.identity))
            ],
        )


def credentials(conn: Connection) -> list[CredentialNote]:
    """Return what is known, those with a problem first, then by their end."""
    rows = conn.execute(
        """
        SELECT c.identity, c.kind, c.subject, c.fqans, c.expires_at, c.problem, c.checked_at,
            coalesce(w.files, 0)
        FROM credential c LEFT JOIN (
            SELECT identity, count(*) AS files FROM transfer WHERE state IN ('NEW', 'RETRY') GROUP BY identity
        ) w USING (identity)
        ORDER BY c.problem IS NULL, c.expires_at NULLS FIRST, c.identity
        """
    )
    return [
        CredentialNote(identity, kind, subject, tuple(fqans), *rest)
        for identity, kind, subject, fqans, *rest in rows
    ]


def delegations(conn: Connection) -> list[DelegationNote]:
    """Return until when each FTS may act for whom."""
    rows = conn.execute(
        "SELECT fts_server, identity, delegation_id, expires_at, problem FROM delegation ORDER BY 1, 2"
    )
    return [DelegationNote(*row) for row in rows]


def forget_old_notes(conn: Connection) -> None:
    """Drop what nobody has looked at for long: its owner has no files any more."""
    for table in ("credential", "delegation"):
        conn.execute(
            f"DELETE FROM {table} WHERE checked_at < now() - make_interval(days => %s)",
            (FORGOTTEN_AFTER_DAYS,),
        )
