"""The memory of the FTS on disk: SQLite, so that a restart forgets nothing that was accepted.

A commit survives the death of the process, not a power cut (WAL, ``synchronous=NORMAL``).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asyncstageout.sandbox.fts.records import (
    FIXED_ATTRIBUTES,
    JOB_COLUMNS,
    LIVE_ATTRIBUTES,
    File,
    Job,
    wire_file,
    wire_job,
)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS job (job_id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS file (
    file_id INTEGER PRIMARY KEY, job_id TEXT NOT NULL, fixed TEXT NOT NULL, live TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS archive (
    job_id TEXT PRIMARY KEY, last_file_id INTEGER NOT NULL, body TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS memo (
    kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (kind, key)
) WITHOUT ROWID;
"""


class Journal:
    """Jobs, files, archived jobs and small notes (bans, delegations, tries)."""

    def __init__(self, path: Path, *, start_empty: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if start_empty:
            for old in path.parent.glob(f"{path.name}*"):
                old.unlink()
        # The application may be built in one thread and served from another.
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)
        self._jobs: dict[str, Job] = {}
        self._files: dict[int, File] = {}
        self._memos: dict[tuple[str, str], Any] = {}

    def add(self, job: Job) -> None:
        """Write a new job with its files; on disk when this returns."""
        self._commit(
            lambda: (
                self._db.execute("INSERT INTO job VALUES (?, ?)", (job.job_id, _job_body(job))),
                self._db.executemany(
                    "INSERT INTO file VALUES (?, ?, ?, ?)",
                    [(f.file_id, job.job_id, _fixed(f), _live(f)) for f in job.files],
                ),
            )
        )

    def note_job(self, job: Job) -> None:
        """Remember to write a changed job at the next :meth:`flush`."""
        self._jobs[job.job_id] = job

    def note_file(self, file: File) -> None:
        """Remember to write a changed file at the next :meth:`flush`."""
        self._files[file.file_id] = file

    def note_memo(self, kind: str, key: str, value: Any) -> None:
        """Remember to write a small fact at the next :meth:`flush`; None removes it."""
        self._memos[kind, key] = value

    @property
    def has_notes(self) -> bool:
        return bool(self._jobs or self._files or self._memos)

    def flush(self) -> None:
        """Write all changes in one transaction."""
        if self.has_notes:
            self._commit(self._write_notes)
            self._jobs.clear()
            self._files.clear()
            self._memos.clear()

    def _write_notes(self) -> None:
        self._db.executemany(
            "UPDATE job SET body = ? WHERE job_id = ?",
            [(_job_body(j), j.job_id) for j in self._jobs.values()],
        )
        self._db.executemany(
            "UPDATE file SET live = ? WHERE file_id = ?",
            [(_live(f), f.file_id) for f in self._files.values()],
        )
        for (kind, key), value in self._memos.items():
            if value is None:
                self._db.execute("DELETE FROM memo WHERE kind = ? AND key = ?", (kind, key))
            else:
                self._db.execute(
                    "INSERT OR REPLACE INTO memo VALUES (?, ?, ?)", (kind, key, json.dumps(value))
                )

    def archive(self, job: Job) -> None:
        """Move a finished job to the archive."""
        self.flush()
        body = {**wire_job(job), "files": [wire_file(job, file) for file in job.files]}
        last = max(file.file_id for file in job.files)
        self._commit(
            lambda: (
                self._db.execute("DELETE FROM job WHERE job_id = ?", (job.job_id,)),
                self._db.executemany("DELETE FROM file WHERE file_id = ?", [(f.file_id,) for f in job.files]),
                self._db.execute(
                    "INSERT OR REPLACE INTO archive VALUES (?, ?, ?)", (job.job_id, last, json.dumps(body))
                ),
            )
        )

    def archived(self, job_id: str) -> dict[str, Any] | None:
        """Return an archived job with its ``files``, as it is shown."""
        row = self._db.execute("SELECT body FROM archive WHERE job_id = ?", (job_id,)).fetchone()
        body: dict[str, Any] | None = json.loads(row[0]) if row else None
        return body

    def load(self) -> list[Job]:
        """Return all jobs with their files."""
        jobs = {
            job_id: Job(**dict(zip(JOB_COLUMNS, json.loads(body), strict=True)))
            for job_id, body in self._db.execute("SELECT job_id, body FROM job")
        }
        for job_id, fixed, live in self._db.execute("SELECT job_id, fixed, live FROM file ORDER BY file_id"):
            names = (*FIXED_ATTRIBUTES, *LIVE_ATTRIBUTES)
            values = (*json.loads(fixed), *json.loads(live))
            jobs[job_id].files.append(File(**dict(zip(names, values, strict=True))))
        return sorted(jobs.values(), key=lambda job: job.files[0].file_id)

    def last_file_id(self) -> int:
        """Return the highest file id ever given; 0 at the beginning."""
        row = self._db.execute(
            "SELECT max(coalesce((SELECT max(file_id) FROM file), 0),"
            " coalesce((SELECT max(last_file_id) FROM archive), 0))"
        ).fetchone()
        return int(row[0])

    def memos(self, kind: str) -> dict[str, Any]:
        """Return the small facts of one kind."""
        rows = self._db.execute("SELECT key, value FROM memo WHERE kind = ?", (kind,))
        return {key: json.loads(value) for key, value in rows}

    def close(self) -> None:
        """Write what is noted and close the file."""
        self.flush()
        self._db.close()

    def _commit(self, write: Callable[[], object]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            write()
        except sqlite3.Error:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _job_body(job: Job) -> str:
    return json.dumps([getattr(job, name) for name in JOB_COLUMNS])


def _fixed(file: File) -> str:
    return json.dumps([getattr(file, name) for name in FIXED_ATTRIBUTES])


def _live(file: File) -> str:
    return json.dumps([getattr(file, name) for name in LIVE_ATTRIBUTES])
