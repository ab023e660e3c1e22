"""Storages in versions: a site's description of its names is kept for ever, and one version of it counts."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256

from psycopg import Connection

from asyncstageout.core.planning import FileNames
from asyncstageout.core.storages.model import Storage, Unresolvable, prefix_storage

_PUT = """
WITH offer AS (
    SELECT * FROM unnest(%(sites)s::text[], %(kinds)s::text[], %(bodies)s::jsonb[], %(digests)s::text[],
        %(origins)s::text[]) AS o(site, kind, body, digest, origin)
), known AS (
    INSERT INTO site AS s (name, updated_by) SELECT site, %(by)s FROM offer
    ON CONFLICT (name) DO NOTHING
), version AS (
    INSERT INTO storage (site, kind, body, digest, origin, loaded_by)
    SELECT o.site, o.kind, o.body, o.digest, o.origin, %(by)s FROM offer o
    WHERE NOT EXISTS (SELECT FROM site s JOIN storage v ON v.id = s.storage_id
                      WHERE s.name = o.site AND v.digest = o.digest)
    ORDER BY o.site
    RETURNING id, site
)
SELECT id, site FROM version
"""

_MAKE_CURRENT = """
UPDATE site s SET storage_id = v.id, updated_at = now(), updated_by = %(by)s
FROM unnest(%(ids)s::bigint[], %(sites)s::text[]) AS v(id, site) WHERE s.name = v.site
"""


class Naming:
    """Makes PFNs as one FTS job has them: with the versions of the storages that it was planned with."""

    def __init__(self, conn: Connection, plans: Collection[FileNames]) -> None:
        ids = {plan.source_storage for plan in plans} | {plan.destination_storage for plan in plans}
        self._storages = storages(conn, ids)

    def source(self, plan: FileNames, lfn: str, username: str, destination: str) -> str:
        """Raises: Unresolvable."""
        storage = self._storages[plan.source_storage]
        return storage.pfn(plan.source_protocol, lfn, username=username, destination=destination).url

    def destination(self, plan: FileNames, lfn: str, username: str, destination: str) -> str:
        """Raises: Unresolvable."""
        storage = self._storages[plan.destination_storage]
        return storage.pfn(plan.destination_protocol, lfn, username=username, destination=destination).url


def put_storages(conn: Connection, offered: Iterable[tuple[Storage, str]], by: str) -> int:
    """Keep storages as the versions that count from now on; return how many are new or different.

    A site that is not known is added. Running FTS jobs go on with the version that they were planned with.

    Args:
        offered: (storage, where the description comes from); one per site.
        by: who does it.
    """
    rows = [(storage, origin, _body(storage)) for storage, origin in offered]
    with conn.transaction():
        versions: list[tuple[int, str]] = conn.execute(
            _PUT,
            {
                "by": by,
                "sites": [storage.site for storage, _, _ in rows],
                "kinds": [storage.kind for storage, _, _ in rows],
                "bodies": [body for _, _, body in rows],
                "digests": [sha256(body.encode()).hexdigest() for _, _, body in rows],
                "origins": [origin for _, origin, _ in rows],
            },
        ).fetchall()
        ids, sites = [row[0] for row in versions], [row[1] for row in versions]
        conn.execute(_MAKE_CURRENT, {"ids": ids, "sites": sites, "by": by})
    return len(versions)


def put_sites(conn: Connection, prefixes: Mapping[str, str], by: str) -> int:
    """Keep sites whose PFN is a prefix and the LFN; return how many are new or different."""
    return put_storages(
        conn, [(prefix_storage(site, prefix), "prefix") for site, prefix in prefixes.items()], by
    )


def storages(conn: Connection, ids: Collection[int]) -> dict[int, Storage]:
    """Return versions of storages by their ids."""
    rows = conn.execute("SELECT id, body::text FROM storage WHERE id = ANY(%s)", (sorted(ids),))
    return {id_: _read(body) for id_, body in rows}


def current_storages(conn: Connection, sites: Sequence[str] | None = None) -> dict[str, tuple[int, Storage]]:
    """Return (version, storage) of all sites, or of these, by name; a site without a storage is left out."""
    rows = conn.execute(
        "SELECT name, storage_id FROM site WHERE storage_id IS NOT NULL"
        " AND (%(sites)s::text[] IS NULL OR name = ANY(%(sites)s)) ORDER BY name",
        {"sites": None if sites is None else list(sites)},
    ).fetchall()
    versions = storages(conn, [id_ for _, id_ in rows])
    return {name: (id_, versions[id_]) for name, id_ in rows}


def site_urls(conn: Connection, lfn: str = "/store/user/aso") -> dict[str, str]:
    """Return where an LFN would be written at each site, by name; others are left out."""
    return {
        name: named
        for name, (_, storage) in current_storages(conn).items()
        if (named := _writable(storage, lfn)) is not None
    }


def _writable(storage: Storage, lfn: str) -> str | None:
    ways = [protocol for protocol in storage.protocols if protocol.write is not None]
    for protocol in sorted(ways, key=lambda protocol: protocol.write or 0):
        with suppress(Unresolvable):
            return storage.pfn(protocol.name, lfn, username="aso").url
    return None


def _body(storage: Storage) -> str:
    return json.dumps(storage.model_dump(mode="json", exclude_defaults=True), sort_keys=True)


@lru_cache(maxsize=1024)
def _read(body: str) -> Storage:
    return Storage.model_validate_json(body)
