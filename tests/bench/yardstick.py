"""How quick this machine is just now: CPU-seconds of work that never changes.

The same core does the same work in more CPU time when others use its caches and its second half. A cost is divided by
this before it is compared with that of another machine, or of another day.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from time import process_time

import psutil
from psycopg import Connection

TIMES = 3
_ROWS = 20_000


def of_python() -> float:
    """Return the CPU-seconds of a fixed piece of Python: small objects, JSON, a sort."""
    return min(_cost(_python, process_time) for _ in range(TIMES))


def of_postgres(conn: Connection) -> float:
    """Return the CPU-seconds of a fixed piece of SQL in the backend of this connection: rows with an index, updated."""
    backend = psutil.Process(conn.info.backend_pid)

    def cpu_s() -> float:
        times = backend.cpu_times()
        return float(times.user + times.system)

    return min(_cost(lambda: _sql(conn), cpu_s) for _ in range(TIMES))


def _cost(work: Callable[[], object], cpu_s: Callable[[], float]) -> float:
    before_s = cpu_s()
    work()
    return cpu_s() - before_s


def _python() -> int:
    rows = [
        {"name": f"/store/user/name{n}/out_{n}.root", "size": n * 7919 % 1000, "ok": True}
        for n in range(_ROWS)
    ]
    text = json.dumps(sorted(rows, key=lambda row: (row["size"], row["name"])))
    return zlib.adler32("".join(row["name"] for row in json.loads(text)).encode())


def _sql(conn: Connection) -> None:
    with conn.transaction(force_rollback=True):
        conn.execute(
            "CREATE TEMPORARY TABLE yardstick (id bigint PRIMARY KEY, name text UNIQUE, state text, size bigint)"
        )
        conn.execute(
            "INSERT INTO yardstick SELECT n, '/store/user/' || md5(n::text) || '/out.root', 'NEW', n"
            " FROM generate_series(1, 50000) n"
        )
        conn.execute("UPDATE yardstick SET state = 'DONE', size = size + 1")
