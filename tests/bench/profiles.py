"""Where the CPU of the pipeline goes, by statement and by function: ``python -m bench.profiles``, from ``tests``.

Postgres: CPU of the backend around each statement, as Linux counts it; what the write-ahead log and checkpoints cost is
not in it. Where ``ASO_POSTGRES_BIN`` names a Postgres with ``pg_stat_statements`` (the wheel's has none): also what each
statement wrote and read. Python: :mod:`cProfile`, which makes everything slower, small functions most of all: read shares, not times.
Writes ``docs/images/performance/profiles.txt``.
"""

from __future__ import annotations

import cProfile
import io
import pstats
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection

from asyncstageout.sandbox.postgres import binaries
from bench import pipeline, report
from bench.__main__ import CYCLE, FILES, LINKS
from bench.calibrate import where

STATEMENTS, WRITERS, FUNCTIONS = 25, 12, 45
PACKAGE = "/asyncstageout/"


def _cpu_s(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9


@contextmanager
def counted() -> Iterator[dict[str, list[float]]]:
    """Yield by place and beginning of each statement of the package: how often, and CPU-seconds."""
    found: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    execute = psycopg.Cursor.execute

    def counting(self: psycopg.Cursor[Any], query: Any, *args: Any, **options: Any) -> Any:
        pid = self.connection.info.backend_pid
        before_s = _cpu_s(pid)
        result = execute(self, query, *args, **options)
        if (place := _place()) is not None:
            one = found[f"{place}  {' '.join(str(query).split())[:60]}"]
            one[0] += 1
            one[1] += _cpu_s(pid) - before_s
        return result

    psycopg.Cursor.execute = counting  # type: ignore[method-assign, assignment]
    try:
        yield found
    finally:
        psycopg.Cursor.execute = execute  # type: ignore[method-assign]


def _place() -> str | None:
    """Return which line of the package asks; None: it is none of the package's."""
    frame = sys._getframe(2)
    while "psycopg" in frame.f_code.co_filename and frame.f_back:
        frame = frame.f_back
    path = frame.f_code.co_filename
    return f"{path.rpartition(PACKAGE)[2]}:{frame.f_lineno}" if PACKAGE in path else None


def _settings() -> dict[str, str]:
    there = (binaries().parent / "lib" / "pg_stat_statements.so").exists()
    return {"shared_preload_libraries": "pg_stat_statements"} if there else {}


_WRITTEN = """
SELECT round(sum(wal_bytes) / %(files)s), round(sum(shared_blks_hit + shared_blks_read) / %(files)s, 1),
    round(sum(rows) / %(files)s, 2), sum(calls), btrim(left(regexp_replace(query, '\\s+', ' ', 'g'), 60))
FROM pg_stat_statements WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
GROUP BY 5 ORDER BY 1 DESC LIMIT %(most)s
"""


def _written(conn: Connection) -> Iterator[str]:
    if not _settings():
        return
    conn.execute("CREATE EXTENSION pg_stat_statements")
    yield ""
    yield "pg_stat_statements, for each file: bytes of write-ahead log, pages of 8 kB that were looked at, rows"
    yield ""
    for wal, pages, rows, calls, text in conn.execute(_WRITTEN, {"files": FILES, "most": WRITERS}):
        yield f"{wal:6} B {pages:6} pages {rows:5} rows {calls:6} x  {text}"


def main() -> None:
    per = 1000 / FILES
    written: list[str] = []
    with counted() as statements:
        pipeline.measure(
            FILES, LINKS, CYCLE, settings=_settings(), look=lambda conn: written.extend(_written(conn))
        )
    lines = [
        f"{where()}: {FILES:,} files from arrival to DONE",
        "",
        "CPU-seconds of Postgres per 1,000 files, by statement",
        "",
    ]
    ranked = sorted(statements.items(), key=lambda one: -one[1][1])
    lines += [f"{cpu_s * per:.4f}  {times:5.0f} x  {name}" for name, (times, cpu_s) in ranked[:STATEMENTS]]
    lines += written
    profile = cProfile.Profile()
    profile.runcall(pipeline.measure, FILES, LINKS, CYCLE)
    text = io.StringIO()
    pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(FUNCTIONS)
    lines += [
        "",
        "Functions of Python, by their own time (the thread that runs the steps)",
        "",
        text.getvalue().strip(),
    ]
    (report.FOLDER / "profiles.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
