"""The memory of one DBS instance: SQLite, with the constraints of dbs2go's schema that an insertion can meet.

A commit survives the death of the process, not a power cut (WAL, ``synchronous=NORMAL``).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

_SCHEMA = """
CREATE TABLE IF NOT EXISTS word (kind TEXT, name TEXT, about TEXT, PRIMARY KEY (kind, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS output_config (
    id INTEGER PRIMARY KEY, app_name TEXT, pset_hash TEXT, release_version TEXT, output_module_label TEXT,
    global_tag TEXT, UNIQUE (app_name, pset_hash, release_version, output_module_label, global_tag)
);
CREATE TABLE IF NOT EXISTS dataset (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, about TEXT NOT NULL, created_at INTEGER,
    created_by TEXT
);
CREATE TABLE IF NOT EXISTS dataset_config (
    dataset_id INTEGER, config_id INTEGER, PRIMARY KEY (dataset_id, config_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dataset_parent (dataset_id INTEGER PRIMARY KEY, parent_id INTEGER);
CREATE TABLE IF NOT EXISTS block (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, dataset_id INTEGER NOT NULL, about TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS block_of_dataset ON block (dataset_id);
CREATE TABLE IF NOT EXISTS file (
    id INTEGER PRIMARY KEY, lfn TEXT NOT NULL UNIQUE, block_id INTEGER NOT NULL, dataset_id INTEGER NOT NULL,
    is_valid INTEGER NOT NULL, about TEXT NOT NULL, lumis TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS file_of_block ON file (block_id);
CREATE INDEX IF NOT EXISTS file_of_dataset ON file (dataset_id);
CREATE TABLE IF NOT EXISTS file_config (
    file_id INTEGER, config_id INTEGER, PRIMARY KEY (file_id, config_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS file_parent (
    file_id INTEGER, parent_id INTEGER, PRIMARY KEY (file_id, parent_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS migration (
    id INTEGER PRIMARY KEY AUTOINCREMENT, url TEXT NOT NULL, input TEXT NOT NULL, state INTEGER NOT NULL,
    retries INTEGER NOT NULL DEFAULT 0, place INTEGER NOT NULL DEFAULT 0, due_at_s REAL,
    created_at INTEGER, created_by TEXT, changed_at INTEGER, UNIQUE (url, input)
);
CREATE INDEX IF NOT EXISTS migration_due ON migration (due_at_s) WHERE due_at_s IS NOT NULL;
"""
TABLES: Final = ("dataset", "block", "file", "migration")
CONFIG_COLUMNS: Final = ("app_name", "pset_hash", "release_version", "output_module_label", "global_tag")
_MANY = 500
"""Names in one statement."""


class Store:
    """One instance. Use it from one thread."""

    def __init__(self, path: Path, *, start_empty: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if start_empty:
            for old in path.parent.glob(f"{path.name}*"):
                old.unlink()
        # The application may be built in one thread and served from another.
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Do all of a block, or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def run(self, statement: str, *values: Any) -> int:
        """Execute a statement; return the id of the row that it made."""
        return self._db.execute(statement, values).lastrowid or 0

    def run_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        self._db.executemany(statement, rows)

    def rows(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        return self._db.execute(statement, values).fetchall()

    def one(self, statement: str, *values: Any) -> Any:
        """Return the first value of the first row; None: there is none."""
        row = self._db.execute(statement, values).fetchone()
        return row[0] if row else None

    def counts(self) -> dict[str, int]:
        return {table: self.one(f"SELECT count(*) FROM {table}") for table in TABLES}

    # -- what an insertion asks and makes ----------------------------------------------------------

    def has_word(self, kind: str, name: str) -> bool:
        return self.one("SELECT 1 FROM word WHERE kind = ? AND name = ?", kind, name) is not None

    def add_word(self, kind: str, name: str, about: dict[str, Any] | None = None) -> None:
        """Add a word unless it is there: tiers, eras, groups, types, primary datasets."""
        self.run("INSERT OR IGNORE INTO word VALUES (?, ?, ?)", kind, name, json.dumps(about or {}))

    def about_word(self, kind: str, name: str) -> dict[str, Any]:
        about = self.one("SELECT about FROM word WHERE kind = ? AND name = ?", kind, name)
        found: dict[str, Any] = json.loads(about or "{}")
        return found

    def config_id(self, config: dict[str, Any]) -> int | None:
        found: int | None = self.one(
            "SELECT id FROM output_config WHERE app_name = ? AND pset_hash = ? AND release_version = ? "
            "AND output_module_label = ? AND global_tag = ?",
            *(config[name] for name in CONFIG_COLUMNS),
        )
        return found

    def add_config(self, config: dict[str, Any]) -> None:
        self.run(
            "INSERT OR IGNORE INTO output_config VALUES (NULL, ?, ?, ?, ?, ?)",
            *(config[name] for name in CONFIG_COLUMNS),
        )

    def dataset_id(self, name: str) -> int | None:
        found: int | None = self.one("SELECT id FROM dataset WHERE name = ?", name)
        return found

    def block_id(self, name: str) -> int | None:
        found: int | None = self.one("SELECT id FROM block WHERE name = ?", name)
        return found

    def file_ids(self, lfns: Sequence[str]) -> dict[str, int]:
        """Return the ids of the files that are there."""
        found: dict[str, int] = {}
        for start in range(0, len(lfns), _MANY):
            part = lfns[start : start + _MANY]
            marks = ",".join("?" * len(part))
            found |= {
                row[0]: row[1] for row in self.rows(f"SELECT lfn, id FROM file WHERE lfn IN ({marks})", *part)
            }
        return found
