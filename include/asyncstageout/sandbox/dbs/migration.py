"""Copying blocks from one instance to another, step by step, as dbs2go's migration server does.

A request is queued, then pending (its ancestors' requests are made), then in progress, then it ends. A step
is done when it is due and somebody asks for anything: nothing runs by itself. Source: ``dbs/migrate.go``.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from asyncstageout.core.dbs_answers import (
    COMPLETED,
    EXISTS,
    FAILED,
    IN_PROGRESS,
    PENDING,
    QUEUED,
    TERMINATED,
)
from asyncstageout.sandbox.dbs import problems as codes
from asyncstageout.sandbox.dbs import reading
from asyncstageout.sandbox.dbs.bulk import insert_block
from asyncstageout.sandbox.dbs.problems import Problem
from asyncstageout.sandbox.dbs.shapes import decoded
from asyncstageout.sandbox.dbs.store import Store
from asyncstageout.sandbox.faults import Faults

RETRIES = 3
STARTED = "Migration request is started"
SUBMIT = "dbs.migrate.SubmitMigration"
_WORDS = {
    QUEUED: "QUEUED",
    PENDING: "PENDING",
    IN_PROGRESS: "IN_PROGRESS",
    COMPLETED: "COMPLETED",
    FAILED: "FAILED",
    EXISTS: "EXIST_IN_DB",
    TERMINATED: "TERMINATED",
}
_COLUMNS = (
    "id AS migration_request_id, url AS migration_url, input AS migration_input, state AS migration_status, "
    "created_by AS create_by, created_at AS creation_date, created_by AS last_modified_by, "
    "changed_at AS last_modification_date, retries AS retry_count"
)


class Migrations:
    """The migration server of one instance.

    Args:
        sources: finds the instance whose reader has this path; None: there is none.
        step_s: of each step.
    """

    def __init__(
        self,
        store: Store,
        sources: Callable[[str], Store | None],
        faults: Faults,
        clock: Callable[[], float],
        step_s: float,
    ) -> None:
        self._store = store
        self._sources = sources
        self._faults = faults
        self._clock = clock
        self._step_s = step_s

    def submit(self, body: bytes, by: str) -> list[dict[str, Any]]:
        """Take a request.

        Raises:
            Problem: there is one already, or the block may not be copied.
        """
        asked = decoded(body, "MigrationRequest", SUBMIT)
        url, wanted = asked["migration_url"], asked["migration_input"]
        looked_at = self._store.one("SELECT id FROM migration WHERE input = ? AND state <> ?", wanted, QUEUED)
        if looked_at:
            reason = f"migration request {wanted} is already exist in DB with id={looked_at}"
            raise Problem(reason, codes.MIGRATION, f"Migration request {wanted}, id=0", SUBMIT)
        self._check_source(url, wanted)
        now_s = self._clock()
        report, details = STARTED, {"migration_url": url, "migration_input": wanted}
        try:
            request_id = self._store.run(
                "INSERT INTO migration (url, input, state, due_at_s, created_at, created_by, changed_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                *(url, wanted, QUEUED, now_s + self._wait_s(wanted), int(now_s), by, int(now_s)),
            )
        except sqlite3.IntegrityError:
            # Not looked at yet. dbs2go makes a success of it, with a number that nothing has.
            request_id = 1 + int(self._store.one("SELECT seq FROM sqlite_sequence WHERE name = 'migration'"))
            inner = Problem(
                "ORA-00001: unique constraint (TUC_MR_1) violated",
                codes.INSERT,
                "",
                "dbs.migration_requests.Insert",
            )
            report = f"Migration request {wanted}, id=0, insert error {inner.text}"
        details |= {"migration_request_id": request_id, "migration_status": QUEUED, "retry_count": 0}
        details |= {"create_by": by, "last_modified_by": by}
        details |= {"creation_date": int(now_s), "last_modification_date": int(now_s)}
        return [
            {
                "migration_details": details,
                "migration_report": report,
                "status": _WORDS[QUEUED],
                "error": None,
            }
        ]

    def status(self, query: Mapping[str, list[str]]) -> list[dict[str, Any]]:
        """Return requests, by number or by block."""
        number = query.get("migration_rqst_id") or query.get("migration_request_id")
        wanted = query.get("migration_input") or query.get("block_name")
        where, values = "1", []
        if number:
            where, values = "id = ?", [number[0]]
        elif wanted:
            where, values = "input = ?", [wanted[0]]
        return [
            dict(row) for row in self._store.rows(f"SELECT {_COLUMNS} FROM migration WHERE {where}", *values)
        ]

    def remove(self, body: bytes, by: str) -> list[dict[str, Any]]:
        """Forget a request.

        Raises:
            Problem: there is none that this caller made.
        """
        function = "dbs.migrate.RemoveMigration"
        number = decoded(body, "MigrationRemoveRequest", function)["migration_rqst_id"]
        if not self._store.one("SELECT id FROM migration WHERE id = ? AND created_by = ?", number, by):
            message = f"unable to remove {number} as it is either does not exists or its status is not failed"
            raise Problem("invalid request error", codes.INVALID_REQUEST, message, function)
        self._store.run("DELETE FROM migration WHERE id = ?", number)
        return [{"status": "success", "migration_request_id": number}]

    def advance(self) -> None:
        """Do what is due."""
        now_s = self._clock()
        while True:
            due = self._store.rows(
                "SELECT * FROM migration WHERE due_at_s <= ? ORDER BY due_at_s, place, id", now_s
            )
            if not due:
                return
            for row in due:
                self._step(row)

    def _step(self, row: sqlite3.Row) -> None:
        if row["state"] == QUEUED:
            self._queue_ancestors(row)
            self._become(row, PENDING)
        elif row["state"] == PENDING:
            self._become(row, IN_PROGRESS)
        else:
            self._try(row)

    def _try(self, row: sqlite3.Row) -> None:
        fault = self._faults.migration(row["input"])
        fails = fault is not None and (fault.failures is None or row["retries"] < fault.failures)
        if not fails:
            try:
                self._copy(row)
            except Problem as error:
                if error.code == codes.BLOCK_EXISTS:
                    self._become(row, EXISTS)
                    return
                fails = True
        if not fails:
            self._become(row, COMPLETED)
        elif row["retries"] <= RETRIES:
            self._become(row, IN_PROGRESS, retries=row["retries"] + 1)
        else:
            self._become(row, TERMINATED)

    def _copy(self, row: sqlite3.Row) -> None:
        source = self._sources(urlsplit(row["url"]).path)
        dump = reading.block_dump(source, row["input"]) if source else None
        if dump is None:
            raise Problem("unexpected end of JSON input", codes.UNMARSHAL, "", "dbs.migrate.processMigration")
        insert_block(self._store, json.dumps(dump).encode(), row["created_by"], int(self._clock()))

    def _queue_ancestors(self, row: sqlite3.Row) -> None:
        """Ask for the parents that are not here, theirs before them."""
        source = self._sources(urlsplit(row["url"]).path)
        place, generation, seen = row["place"], [row["input"]], {row["input"]}
        while source and generation:
            place -= 1
            parents = [
                found["parent_block_name"]
                for name in generation
                for found in reading.block_parents(source, {"block_name": [name]})
            ]
            generation = [name for name in dict.fromkeys(parents) if name not in seen]
            seen.update(generation)
            for name in generation:
                if self._store.block_id(name) is None:
                    self._store.run(
                        "INSERT OR IGNORE INTO migration (url, input, state, place, due_at_s, created_at, "
                        "created_by, changed_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                        *(row["url"], name, PENDING, place, row["due_at_s"] + self._wait_s(name)),
                        *(row["created_at"], row["created_by"], row["changed_at"]),
                    )

    def _become(self, row: sqlite3.Row, state: int, retries: int | None = None) -> None:
        ends = state in (COMPLETED, EXISTS, TERMINATED)
        self._store.run(
            "UPDATE migration SET state = ?, retries = ?, due_at_s = ?, changed_at = ? WHERE id = ?",
            *(state, row["retries"] if retries is None else retries),
            None if ends else row["due_at_s"] + self._wait_s(row["input"]),
            *(int(self._clock()), row["id"]),
        )

    def _wait_s(self, block: str) -> float:
        fault = self._faults.migration(block)
        return self._step_s + (fault.latency_s if fault else 0)

    def _check_source(self, url: str, wanted: str) -> None:
        source = self._sources(urlsplit(url).path)
        function = "dbs.migrate.validInput"
        dataset = wanted.partition("#")[0]
        if source is None:
            inner = Problem(f'Get "{url}": no such host', codes.HTTP_REQUEST, "", "dbs.utils.getData")
            problem = inner.within(codes.HTTP_REQUEST, "", function)
            raise problem.within(codes.MIGRATION, "not allowed for migration", SUBMIT)
        query = {"dataset": [dataset], "detail": ["true"], "dataset_access_type": ["*"]}
        rows = reading.datasets(source, query)
        if len(rows) != 1:
            problem = Problem(codes.NIL, codes.DATABASE, "", function)
            raise problem.within(codes.MIGRATION, "not allowed for migration", SUBMIT)
        if (status := rows[0]["dataset_access_type"]) != "VALID":
            reason = f"dataset {dataset} has status {status}"
            raise Problem(reason, codes.MIGRATION, "not allowed for migration", SUBMIT)
