"""The append-only record of every copy that started and ended: JSON lines, for audits."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from asyncstageout.sandbox.fts.copying import Copied
from asyncstageout.sandbox.fts.records import File, Job


class TransferLog:
    """Writes one line per event; a line that was written survives the death of the process."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._out = path.open("a", buffering=1, encoding="utf-8")
        self._clock = clock

    def start(self, job: Job, file: File) -> None:
        """Record that a copy starts."""
        self._write({"event": "start"}, job, file)

    def end(self, job: Job, file: File, copied: Copied) -> None:
        """Record how a copy ended, also when its file was cancelled meanwhile."""
        outcome = {
            "event": "end",
            "ok": copied.failure is None,
            "reason": str(copied.failure or ""),
            "size_bytes": copied.size_bytes,
            "duration_s": round(copied.duration_s, 3),
            "file_state": file.file_state,
        }
        self._write(outcome, job, file)

    def close(self) -> None:
        """Close the file."""
        self._out.close()

    def _write(self, outcome: dict[str, object], job: Job, file: File) -> None:
        line = {
            "at": datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds"),
            **outcome,
            "job_id": job.job_id,
            "file_id": file.file_id,
            "try": file.tries,
            "source": file.source_surl,
            "destination": file.dest_surl,
        }
        self._out.write(json.dumps(line) + "\n")
