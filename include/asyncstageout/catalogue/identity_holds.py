"""Identities that an FTS does not let in, or without a credential: their files wait for another look."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from psycopg import Connection


@dataclass(frozen=True, slots=True)
class IdentityHold:
    """An identity whose files wait; no attempt is used."""

    fts_server: str
    """Empty: at no FTS, since there is no credential."""
    identity: str
    reason: str
    held_at: datetime
    retry_at: datetime

    def sentence(self) -> str:
        """Say why its files wait, and until when."""
        if not self.fts_server:
            return (
                f"{self.identity} has had no credential since {self.held_at:%H:%M}"
                f" (looked for again {self.retry_at:%H:%M}): {self.reason}"
            )
        return (
            f"{self.fts_server} has not let {self.identity} in since {self.held_at:%H:%M}"
            f" (asked again {self.retry_at:%H:%M}): {self.reason}"
        )


def holds(conn: Connection, fts_server: str | None = None) -> list[IdentityHold]:
    """Return the holds in force, at one FTS or all. One whose time is over is in force no more."""
    rows = conn.execute(
        "SELECT fts_server, identity, reason, held_at, retry_at FROM identity_hold"
        " WHERE retry_at > now() AND (%(server)s::text IS NULL OR fts_server IN ('', %(server)s))"
        " ORDER BY fts_server, identity",
        {"server": fts_server},
    )
    return [IdentityHold(*row) for row in rows]


def hold(
    conn: Connection, fts_server: str, identities: Collection[str], *, reason: str, wait_s: float
) -> None:
    """Hold identities back for ``wait_s``, from now on or once more; with an empty server, at all of them."""
    conn.execute(
        """
        INSERT INTO identity_hold (fts_server, identity, reason, retry_at)
        SELECT %s, i, %s, now() + make_interval(secs => %s) FROM unnest(%s::text[]) AS i ORDER BY i
        ON CONFLICT (fts_server, identity) DO UPDATE
            SET reason = excluded.reason, retry_at = excluded.retry_at
        """,
        (fts_server, reason, wait_s, sorted(identities)),
    )


def hold_for_want_of_credential(conn: Connection, reasons: Mapping[str, str], *, wait_s: float) -> None:
    """Hold identities back at every server for ``wait_s``, each for its own reason."""
    conn.execute(
        """
        INSERT INTO identity_hold (fts_server, identity, reason, retry_at)
        SELECT '', h.identity, h.reason, now() + make_interval(secs => %s)
        FROM unnest(%s::text[], %s::text[]) AS h(identity, reason) ORDER BY h.identity
        ON CONFLICT (fts_server, identity) DO UPDATE
            SET reason = excluded.reason, retry_at = excluded.retry_at
        """,
        (wait_s, list(reasons), list(reasons.values())),
    )


def let_go(conn: Connection, fts_server: str, identities: Collection[str]) -> None:
    """End the holds of identities that FTS has let in: so they have a credential."""
    conn.execute(
        "DELETE FROM identity_hold WHERE fts_server IN ('', %s) AND identity = ANY(%s)",
        (fts_server, sorted(identities)),
    )
