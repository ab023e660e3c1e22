"""The kinds of sources against what they read: real files, a real database, a server that answers as CRAB does."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pyarrow as pa
import pytest
from psycopg import Connection
from pyarrow import parquet

from asyncstageout.clients.crab import CRABBadAnswer, CRABClient, CRABError, CRABJudge, CRABSilent
from asyncstageout.clients.http import Caller, Patience, new_session
from asyncstageout.provider.sources import SourcesInvalid, crab, inbox, read_entries
from asyncstageout.provider.sources.crab import CRABSource
from asyncstageout.provider.sources.inbox import Inbox
from asyncstageout.provider.sources.query import QuerySource, bound
from asyncstageout.steps import intake
from asyncstageout.steps.intake import Interval, Source, SourceUnreadable
from asyncstageout.steps.recording import Summary
from clients.answering import AnsweringServer, Asked, Reply, answering
from fixtures.catalogue import record, states

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
INTERVAL = Interval(NOON, NOON + timedelta(minutes=5))

Collect = Callable[..., Summary]


@pytest.fixture
def collect(conn: Connection, step: int) -> Collect:
    def run(source: Source, interval: Interval = INTERVAL, **options: Any) -> Summary:
        return intake.collect(conn, source, interval, step, **options)

    return run


def refusals(conn: Connection) -> dict[str, str]:
    return dict(conn.execute("SELECT name, problem FROM intake_object WHERE problem IS NOT NULL").fetchall())


# --- inbox ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path


def lines(*records: Any) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in records)


def left(folder: Path) -> set[str]:
    """Return what lies where, without the dates."""
    return {
        "/".join(part for part in path.relative_to(folder).parts if not part.startswith("20"))
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_objects_are_taken_and_moved(conn: Connection, collect: Collect, folder: Path) -> None:
    (folder / "inbox/a.ndjson").write_bytes(lines(record(1), record(2)) + b"\n  \n")
    (folder / "inbox/b.jsonl.gz").write_bytes(gzip.compress(lines(record(3))))
    parquet.write_table(
        pa.Table.from_pylist([record(4), record(5) | {"adler32": None}]), folder / "inbox/c.parquet"
    )
    assert collect(Inbox("inbox", str(folder))).counts["created"] == 5
    assert states(conn) == {"NEW": 5}
    assert left(folder) == {"done/a.ndjson", "done/b.jsonl.gz", "done/c.parquet"}
    assert collect(Inbox("inbox", f"file://{folder}")).counts["batches"] == 0


def test_what_is_being_written_or_is_something_else_is_left_alone(
    conn: Connection, collect: Collect, folder: Path
) -> None:
    names = ("a.ndjson.part", "b.ndjson.tmp", ".c.ndjson", "README", "d.ndjson/e.ndjson")
    for name in names:
        path = folder / "inbox" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(lines(record(1)))
    assert collect(Inbox("inbox", str(folder))).counts["batches"] == 0
    assert left(folder) == {f"inbox/{name}" for name in names}


def test_a_bad_object_goes_to_quarantine_with_a_report_beside_it(
    conn: Connection, collect: Collect, folder: Path
) -> None:
    (folder / "inbox/a.ndjson").write_bytes(
        lines(record(1)) + b"{oops\n" + lines(record(2) | {"priority": 9})
    )
    collect(Inbox("inbox", str(folder)))
    assert states(conn) == {"NEW": 1}
    assert left(folder) == {"quarantine/a.ndjson", "quarantine/a.ndjson.report.ndjson"}
    [report] = folder.rglob("*.report.ndjson")
    first, *rest = map(json.loads, report.read_text().splitlines())
    assert first == {"created": 1, "existed": 0, "refused": 2}
    assert [(one["position"], one["field"]) for one in rest] == [(2, "record"), (3, "priority")]
    # Mended and put back, under the same name.
    (folder / "inbox/a.ndjson").write_bytes(lines(record(1), record(2)))
    assert collect(Inbox("inbox", str(folder))).counts["existed"] == 1
    assert "done/a.ndjson" in left(folder)


BROKEN = {
    "a.parquet": (b"PAR1 no more", "not Parquet"),
    "b.ndjson.gz": (gzip.compress(lines(record(7)) * 2000)[:-40], "cut off"),
    "c.ndjson.gz": (b"plain", "not gzip"),
    "d.ndjson": (b"[" * 2_000_000, "line 1 has more than 1,000,000 bytes"),
    "e.ndjson": (b"\xff\xfe\x00", "not JSON"),
    "f.ndjson": (b"[" * 100_000 + b"\n", "not JSON"),
    "g.ndjson": (b'{"source_lfn": "\\u0000 \\ud800", "task": "\\u0000"}\n', "task"),
    "h.parquet": (b"", "not Parquet"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_parsed_is_put_aside(
    name: str, conn: Connection, collect: Collect, folder: Path
) -> None:
    content, problem = BROKEN[name]
    (folder / "inbox" / name).write_bytes(content)
    (folder / "inbox/z.ndjson").write_bytes(lines(record(1)))
    collect(Inbox("inbox", str(folder)))
    assert left(folder) == {f"quarantine/{name}", f"quarantine/{name}.report.ndjson", "done/z.ndjson"}
    assert problem in refusals(conn)[name]


def test_where_nothing_may_be_moved_the_catalogue_remembers(
    conn: Connection, collect: Collect, folder: Path
) -> None:
    (folder / "inbox/a.ndjson").write_bytes(lines(record(1)))
    (folder / "inbox/b.ndjson").write_bytes(b"oops\n")
    source = Inbox("inbox", str(folder), keeps=True)
    assert collect(source).counts["batches"] == 2
    assert collect(source).counts["batches"] == 0, "neither is read again"
    (folder / "inbox/b.ndjson").write_bytes(lines(record(2)))
    assert collect(source).counts["created"] == 1
    assert left(folder) == {"inbox/a.ndjson", "inbox/b.ndjson"}


def test_moving_that_is_not_allowed_is_said(
    conn: Connection, collect: Collect, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "inbox/a.ndjson").write_bytes(lines(record(1)))

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise PermissionError("read-only")

    with monkeypatch.context() as patched:
        patched.setattr(inbox.ObjectStoragePath, "move", refuse)
        with pytest.raises(SourceUnreadable, match="set consumed to keep"):
            collect(Inbox("inbox", str(folder)))
    collect(Inbox("inbox", str(folder)))
    assert left(folder) == {"done/a.ndjson"}
    assert states(conn) == {"NEW": 1}


def test_the_same_name_twice_a_day_is_kept_twice(conn: Connection, collect: Collect, folder: Path) -> None:
    for number in (1, 2):
        (folder / "inbox/a.ndjson").write_bytes(lines(record(number), record(9)))
        collect(Inbox("inbox", str(folder)))
    assert left(folder) == {"done/a.ndjson", "done/a.ndjson.1"}


def test_without_pyarrow_all_else_is_taken_first(
    conn: Connection, collect: Collect, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "find_spec", lambda _name: None)
    (folder / "inbox/a.parquet").write_bytes(b"")
    (folder / "inbox/b.ndjson").write_bytes(lines(record(1)))
    with pytest.raises(
        SourceUnreadable, match=r"a\.parquet needs Parquet: pip install 'asyncstageout\[parquet\]'"
    ):
        collect(Inbox("inbox", str(folder)))
    assert states(conn) == {"NEW": 1}
    assert left(folder) == {"inbox/a.parquet", "done/b.ndjson"}


def test_a_folder_that_is_not_there_is_said(collect: Collect, tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable, match="there is no folder"):
        collect(Inbox("inbox", str(tmp_path)))


def test_two_runs_at_once_take_an_object_once(conn: Connection, collect: Collect, folder: Path) -> None:
    """The other one moved it after it was listed here."""
    (folder / "inbox/a.ndjson").write_bytes(lines(record(1)))
    source = Inbox("inbox", str(folder))
    [ours] = source.batches(INTERVAL)
    collect(source)
    ours.done(intake.Report())
    with pytest.raises(intake.Gone):
        next(ours.records())
    assert left(folder) == {"done/a.ndjson"}


def test_an_object_that_is_replaced_while_it_is_read_is_not_lost(
    conn: Connection, collect: Collect, folder: Path
) -> None:
    (folder / "inbox/a.ndjson").write_bytes(lines(record(1)))
    source = Inbox("inbox", str(folder))
    [before] = source.batches(INTERVAL)
    (folder / "inbox/a.ndjson").write_bytes(lines(record(1), record(2)))
    before.done(intake.Report())
    assert left(folder) == {"inbox/a.ndjson"}
    assert collect(source).counts["created"] == 2


# --- query ---


@pytest.fixture
def database(conn: Connection, catalogue_url: str, monkeypatch: pytest.MonkeyPatch) -> Connection:
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", catalogue_url)
    conn.execute(
        "CREATE TABLE outbound (task text, username text, source text, destination text, source_lfn text,"
        " size_bytes numeric, adler32 text, made_at timestamptz)"
    )
    return conn


def put_row(conn: Connection, number: int, made_at: datetime, **changes: Any) -> None:
    fields = record(number) | {"made_at": made_at} | changes
    fields.pop("destination_lfn")
    names = ", ".join(fields)
    conn.execute(
        f"INSERT INTO outbound ({names}) VALUES ({', '.join(['%s'] * len(fields))})", list(fields.values())
    )


SELECT = (
    "SELECT task, username, source, destination, source_lfn, size_bytes, adler32 FROM outbound"
    " WHERE task LIKE '2%' AND made_at >= :start AND made_at < :end::timestamptz"
)


def test_rows_of_the_interval_are_taken_and_late_ones_found(
    conn: Connection, collect: Collect, database: Connection
) -> None:
    for number, minutes in enumerate((-70, -30, 2, 20)):
        put_row(conn, number, NOON + timedelta(minutes=minutes), adler32=None)
    source = QuerySource("other", "other", SELECT, overlap_min=60)
    assert collect(source).counts["created"] == 2
    put_row(conn, 9, NOON - timedelta(minutes=10))
    later = Interval(NOON + timedelta(minutes=30), NOON + timedelta(minutes=35))
    assert collect(source, later).counts["created"] == 2, "the late one, and that of the time without a run"
    assert states(conn) == {"NEW": 4}


def test_refused_rows_make_the_window_known(conn: Connection, collect: Collect, database: Connection) -> None:
    put_row(conn, 1, NOON, source="T2_XX_Nowhere")
    for _ in range(2):
        collect(QuerySource("other", "other", SELECT, overlap_min=0))
    assert refusals(conn) == {
        "2026-11-22T12:00:00 to 2026-11-22T12:05:00": "1: request: unknown source site T2_XX_Nowhere",
    }


def test_a_query_only_reads(conn: Connection, collect: Collect, database: Connection) -> None:
    put_row(conn, 1, NOON)
    conn.execute(
        "CREATE FUNCTION erase() RETURNS bigint LANGUAGE sql AS 'DELETE FROM outbound RETURNING 1::bigint'"
    )
    evil = "SELECT erase() AS size_bytes"
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        collect(QuerySource("other", "other", evil, overlap_min=0))
    assert conn.execute("SELECT count(*) FROM outbound").fetchone() == (1,)


def test_a_query_without_times_reads_all(conn: Connection, collect: Collect, database: Connection) -> None:
    put_row(conn, 1, NOON)
    source = QuerySource("other", "other", "SELECT * FROM outbound WHERE task LIKE '2%'", overlap_min=60)
    assert not source.has_times
    assert collect(source).counts["refused"] == 1
    assert refusals(conn)["all rows"] == "1: made_at: Extra inputs are not permitted"


def test_parameters_are_bound_in_order_and_casts_are_none() -> None:
    sql = "SELECT a::start, b % 2 FROM t WHERE x < :end AND y >= :start AND z < :end"
    assert bound(sql, INTERVAL, "?") == (
        "SELECT a::start, b % 2 FROM t WHERE x < ? AND y >= ? AND z < ?",
        (INTERVAL.end_at, INTERVAL.start_at, INTERVAL.end_at),
    )
    assert bound("SELECT 1 % 2", INTERVAL, "%s") == ("SELECT 1 % 2", ())


def test_a_connection_of_no_database_is_said(collect: Collect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", '{"conn_type": "fts3", "host": "fts"}')
    with pytest.raises(SourceUnreadable, match="connection other is of no database"):
        collect(QuerySource("other", "other", "SELECT 1", overlap_min=0))


# --- CRAB ---


class FakeCRAB:
    """Answers as CRAB's ``filetransfers`` does, its limit that gives one file less included."""

    def __init__(self, limit: int = 1000) -> None:
        self.limit = limit
        self.rows: dict[str, dict[str, Any]] = {}

    def put(self, number: int, **changes: Any) -> str:
        fields = record(number)
        names = {request: column for column, request in crab.FIELDS.items()}
        row = {names[name]: value for name, value in fields.items() if name in names}
        row |= {"tm_type": "output", "tm_publish": 1, "tm_jobid": number, "tm_job_retry_count": 0}
        row |= {"tm_user_group": None, "tm_user_role": None, "tm_id": f"{number:056x}", "tm_transfer_state": 0,
                "tm_aso_worker": None} | changes  # fmt: skip
        self.rows[row["tm_id"]] = row
        return str(row["tm_id"])

    def states(self) -> list[tuple[int | str, str | None]]:
        return [(row["tm_transfer_state"], row["tm_aso_worker"]) for row in self.rows.values()]

    def respond(self, asked: Asked) -> Reply:
        url = urlsplit(asked.path)
        assert url.path == "/crabserver/test/filetransfers"
        form = {name: values[0] for name, values in parse_qs(url.query or asked.body.decode()).items()}
        answer = getattr(self, form["subresource"])(form)
        return Reply(body=json.dumps(answer).encode(), headers={"Content-Type": "application/json"})

    def activeUsers(self, form: dict[str, str]) -> dict[str, Any]:  # noqa: N802
        mine = [row for row in self.rows.values() if row["tm_transfer_state"] in (0, 1)]
        users = sorted(
            {row["tm_username"] for row in mine if row["tm_aso_worker"] in (None, form["asoworker"])}
        )
        return {
            "desc": {"columns": ["TM_USERNAME", "TM_USER_ROLE"]},
            "result": [[user, None] for user in users],
        }

    def acquireTransfers(self, form: dict[str, str]) -> dict[str, Any]:  # noqa: N802
        for row in list(self.rows.values()):
            if (row["tm_username"], row["tm_transfer_state"], row["tm_aso_worker"]) == (
                form["username"],
                0,
                None,
            ):
                row |= {"tm_transfer_state": 1, "tm_aso_worker": form["asoworker"]}
        return {"result": []}

    def acquiredTransfers(self, form: dict[str, str]) -> dict[str, Any]:  # noqa: N802
        assert form["grouping"] == "1"
        mine = [
            row
            for row in self.rows.values()
            if (row["tm_username"], row["tm_transfer_state"], row["tm_aso_worker"])
            == (form["username"], 1, form["asoworker"])
        ][: self.limit - 1]
        columns = list(next(iter(self.rows.values())))
        return {"desc": {"columns": columns}, "result": [[row[column] for column in columns] for row in mine]}

    def updateTransfers(self, form: dict[str, str]) -> dict[str, Any]:  # noqa: N802
        ids, given = ([one.strip(" '") for one in form[name].strip("[]").split(",")]
                      for name in ("list_of_ids", "list_of_transfer_state"))  # fmt: skip
        for one, state in zip(ids, given, strict=True):
            self.rows[one]["tm_transfer_state"] = state
        return {"result": []}


@pytest.fixture
def served() -> Iterator[tuple[FakeCRAB, AnsweringServer]]:
    fake = FakeCRAB()
    with answering(fake.respond) as server:
        yield fake, server


def crab_source(server: AnsweringServer, **options: Any) -> CRABSource:
    caller = Caller(new_session(), CRABJudge(), Patience(tries=2, first_wait_s=0), sleep=lambda _s: None)
    return CRABSource("crab", CRABClient(f"{server.url}/crabserver/test", caller, "aso"), **options)


def test_crabs_files_are_acquired_taken_and_handed_over(
    conn: Connection, collect: Collect, served: tuple[FakeCRAB, AnsweringServer]
) -> None:
    fake, server = served
    fake.limit = 4
    for number in range(8):
        fake.put(number)
    fake.put(8, tm_aso_worker="schedd")
    summary = collect(crab_source(server))
    assert summary.counts["created"] == 8
    assert fake.states() == [("SUBMITTED", "aso")] * 8 + [(0, "schedd")]
    row = conn.execute(
        "SELECT size_bytes, publication::text, job_id FROM transfer ORDER BY id LIMIT 1"
    ).fetchone()
    assert row == (1000, "NEW", "0")
    assert collect(crab_source(server)).counts["created"] == 0


def test_what_is_refused_stays_ours_at_crab_and_is_tried_again(
    conn: Connection, collect: Collect, served: tuple[FakeCRAB, AnsweringServer]
) -> None:
    fake, server = served
    fake.put(1)
    bad = fake.put(2, tm_source="T2_XX_Nowhere")
    for _ in range(2):
        assert collect(crab_source(server)).counts["refused"] == 1
        assert fake.states() == [("SUBMITTED", "aso"), (1, "aso")]
        assert refusals(conn)["alice"].endswith("unknown source site T2_XX_Nowhere")
    fake.rows[bad]["tm_source"] = "T2_IT_Bari"
    collect(crab_source(server))
    assert fake.states() == [("SUBMITTED", "aso")] * 2


def test_a_crash_before_the_hand_over_adds_nothing_twice(
    conn: Connection,
    collect: Collect,
    served: tuple[FakeCRAB, AnsweringServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake, server = served
    fake.put(1)

    def die(*_args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(CRABSource, "hand_over", die)
        with pytest.raises(KeyboardInterrupt):
            collect(crab_source(server))
    assert (states(conn), fake.states()) == ({"NEW": 1}, [(1, "aso")])
    assert collect(crab_source(server)).counts["existed"] == 1
    assert fake.states() == [("SUBMITTED", "aso")]


def test_a_dry_run_acquires_nothing(
    conn: Connection, collect: Collect, served: tuple[FakeCRAB, AnsweringServer]
) -> None:
    fake, server = served
    fake.put(1)
    fake.put(2, tm_transfer_state=1, tm_aso_worker="aso")
    assert collect(crab_source(server, acquires=False), dry_run=True).counts["created"] == 1
    assert fake.states() == [(0, None), (1, "aso")]


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(503), CRABSilent),
        (Reply(403, b"no"), CRABError),
        (Reply(200, b"<html>login</html>"), CRABBadAnswer),
        (Reply(200, b'{"result": [[1]], "desc": {"columns": []}}'), CRABBadAnswer),
        (Reply(302, headers={"Location": "https://login.example.org"}), CRABError),
    ],
)
def test_an_answer_that_is_none_is_said(collect: Collect, reply: Reply, error: type[Exception]) -> None:
    with answering(lambda _asked: reply) as server, pytest.raises(error):
        collect(crab_source(server))


def test_crabs_connection_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_CRAB", '{"conn_type": "http", "host": "cmsweb.example.org", "extra": {"crl": "x"}}'
    )
    with pytest.raises(SourceUnreadable, match="crl is leaf, chain or empty"):
        CRABSource.of("crab", "crab", "prod", "aso")
    monkeypatch.setenv(
        "AIRFLOW_CONN_CRAB", '{"conn_type": "http", "host": "cmsweb.example.org", "port": 8443}'
    )
    made = CRABSource.of("crab", "crab", "prod", "aso")
    assert made._client._url == "https://cmsweb.example.org:8443/crabserver/prod/filetransfers"


# --- the list ---


INVALID = {
    "{": "the whole: not JSON",
    "{}": "the whole: not a list",
    "[1]": "entry 1: entry: ",
    '[{"name": "a", "kind": "ftp"}]': r"entry 1 \(a\): entry: .*'inbox'",
    '[{"name": "a", "kind": "inbox"}]': r"entry 1 \(a\): path: Field required",
    '[{"name": "a", "kind": "inbox", "path": "relative"}]': r"entry 1 \(a\): path: ",
    '[{"name": "a", "kind": "inbox", "path": "/x", "hop": 1}]': r"entry 1 \(a\): hop: Extra",
    '[{"name": "a b", "kind": "inbox", "path": "/x"}]': r"entry 1 \(a b\): name: ",
    '[{"name": "a", "kind": "query", "conn_id": "c"}]': r"entry 1 \(a\): entry: give either sql or sql_file",
    '[{"name": "a", "kind": "query", "conn_id": "c", "sql": "DELETE FROM x"}]': r"entry 1 \(a\): sql: ",
    '[{"name": "a", "kind": "inbox", "path": "/x"}, {"name": "a", "kind": "crab", "conn_id": "c"}]':
        r"entry 2 \(a\): another entry has the same name",
}  # fmt: skip


@pytest.mark.parametrize("text", INVALID)
def test_a_wrong_list_is_said_with_the_entry_and_the_field(text: str) -> None:
    with pytest.raises(SourcesInvalid, match=f"Airflow variable stageout_sources: {INVALID[text]}"):
        read_entries(text)


def test_every_kind_makes_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_CRAB", '{"conn_type": "http", "host": "cmsweb.example.org"}')
    (tmp_path / "select.sql").write_text("SELECT 1")
    entries = read_entries(
        json.dumps(
            [
                {"name": "a", "kind": "inbox", "path": "/x"},
                {"name": "b", "kind": "crab", "conn_id": "crab"},
                {"name": "c", "kind": "query", "conn_id": "x", "sql_file": str(tmp_path / "select.sql")},
                {
                    "name": "d",
                    "kind": "class",
                    "path": "provider.test_sources:OwnSource",
                    "options": {"at": "x"},
                },
                {"name": "e", "kind": "class", "path": "provider.test_sources:Nothing"},
                {"name": "f", "kind": "query", "conn_id": "x", "sql_file": "/nowhere.sql"},
            ]
        )
    )
    for name in "abcd":
        assert entries[name].source(dry_run=True).name == name
    for name in "ef":
        with pytest.raises(SourcesInvalid):
            entries[name].source(dry_run=True)


class OwnSource:
    has_times = False

    def __init__(self, name: str, *, dry_run: bool, at: str) -> None:
        self.name = name

    def batches(self, interval: Interval) -> Iterator[intake.Batch]:
        yield from ()
