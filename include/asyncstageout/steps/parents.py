"""What a block's parents need before it: their blocks looked up, and migrated where they are missing.

Nothing waits here. A block whose input is on its way goes back, without a try, and the next run looks again.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from psycopg import Connection

from asyncstageout.catalogue.input_blocks import (
    Heard,
    Unsettled,
    Wanted,
    keep_parents,
    lease_migrations,
    record_migrations,
    unsettled,
)
from asyncstageout.catalogue.publishing import ClosedBlock
from asyncstageout.clients.dbs import DBSClient, DBSReader
from asyncstageout.clients.dbs_errors import DBSError, DBSRefused, MigrationRefused
from asyncstageout.core.blocks import PublicationSettings
from asyncstageout.core.dbs_answers import Migration
from asyncstageout.steps.crashpoints import reached

logger = logging.getLogger(__name__)

MIGRATIONS_AT_ONCE = 50
MIGRATION_LEASE_S = 600.0
ASK_AGAIN_S = 60.0
NAMED = 3


class DBSInstances(Protocol):
    """DBS instances by the names of their connections. Threads may share it."""

    def settings(self, dbs: str) -> PublicationSettings: ...

    def client(self, dbs: str) -> DBSClient:
        """Return the client of an instance.

        Raises:
            DBSError: there is no way to it.
        """
        ...

    def global_reader(self, dbs: str) -> DBSReader | None:
        """Return where parents are looked for that the instance does not have; None: nowhere."""
        ...


class InputMissing(Exception):
    """Input blocks cannot be had: the block's files fail."""

    def __init__(self, lost: Sequence[Unsettled]) -> None:
        first = lost[0]
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        super().__init__(f"input block {first.block_name} cannot be migrated: {first.reason}{more}")


def look_for_parents(
    conn: Connection, dbs: DBSInstances, block: ClosedBlock, parents: Collection[str]
) -> ClosedBlock:
    """Find the blocks of a block's parents, and write down which of them have to be migrated first.

    Returns the block with what is known of its parents now.

    Raises:
        DBSError: a DBS does not answer.
    """
    known = dbs.client(block.dbs).blocks_of_files(parents) if parents else {}
    absent = [parent for parent in parents if parent not in known]
    reader = dbs.global_reader(block.dbs)
    elsewhere = reader.blocks_of_files(absent) if reader and absent else {}
    unknown = sorted(parent for parent in absent if parent not in elsewhere)
    if unknown:
        logger.warning("%s: %d parents are in no DBS, such as %s", block.name, len(unknown), unknown[0])
    missing, datasets = sorted(set(elsewhere.values())), _datasets([*known.values(), *elsewhere.values()])
    keep_parents(conn, block.block_id, block.dbs, missing=missing, datasets=datasets, unknown=unknown)
    reached("migrate.after_intent")
    return replace(block, parent_blocks=missing, parent_datasets=datasets, parents_unknown=unknown)


def _datasets(blocks: Iterable[str]) -> list[str]:
    return sorted({block.partition("#")[0] for block in blocks})


def migrate(conn: Connection, dbs: DBSInstances, name: str, blocks: Collection[str]) -> None:
    """Ask an instance to migrate blocks, once each, or what became of that.

    Raises:
        DBSError: it does not answer, or there is no other DBS to take them from.
    """
    wanted = lease_migrations(conn, name, blocks, MIGRATION_LEASE_S, MIGRATIONS_AT_ONCE)
    if not wanted:
        return
    client, reader = dbs.client(name), dbs.global_reader(name)
    heard: list[Heard] = []
    try:
        for one in wanted:
            heard.append(_ask(client, reader, one, dbs.settings(name)))
            reached("migrate.after_submit")
    except DBSError as error:
        heard += [Heard(one.block_name, "OPEN", reason=str(error)) for one in wanted[len(heard) :]]
        raise
    finally:
        record_migrations(conn, name, heard, ASK_AGAIN_S)


def _ask(client: DBSClient, reader: DBSReader | None, wanted: Wanted, settings: PublicationSettings) -> Heard:
    """Ask about one migration, or for it.

    Raises:
        DBSError: DBS does not answer.
    """
    name = wanted.block_name
    if reader is None:
        return Heard(name, "FAILED", reason="the connection names no global_reader any more")
    try:
        found = client.migration(wanted.request_id) if wanted.request_id else None
        found = found or client.submit_migration(reader.reader_url, name)
        if not found.has_failed or wanted.tries + 1 >= settings.max_tries:
            return _heard(name, found)
        # What has failed keeps the place of the next request.
        client.remove_migration(found.request_id)
        return _heard(name, client.submit_migration(reader.reader_url, name), tries=1)
    except MigrationRefused as error:
        return Heard(name, "FAILED", reason=str(error))
    except DBSRefused as error:
        state = "OPEN" if wanted.tries + 1 < settings.max_tries else "FAILED"
        return Heard(name, state, reason=str(error), tries=1)


def _heard(name: str, found: Migration, tries: int = 0) -> Heard:
    state = "DONE" if found.is_at_destination else "FAILED" if found.has_failed else "OPEN"
    return Heard(name, state, found.request_id, found.meaning, tries)


def why_waiting(conn: Connection, block: ClosedBlock) -> str | None:
    """Say for how many input blocks a block waits; None: they are all there.

    Raises:
        InputMissing: some will never be.
    """
    left = unsettled(conn, [block.block_id]).get(block.block_id, [])
    if lost := [one for one in left if one.has_failed]:
        raise InputMissing(lost)
    if not left:
        return None
    named = ", ".join(one.block_name for one in left[:NAMED])
    return f"waits for {len(left)} input block{'' if len(left) == 1 else 's'}: {named}"
