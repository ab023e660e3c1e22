"""``aso doctor``: finds each thing that was broken on purpose, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import pytest
from click.testing import Result
from psycopg import Connection
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.migrate import downgrade
from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.catalogue.storages import put_sites
from asyncstageout.cli import doctor
from asyncstageout.cli.doctor import CHECKS, Level, examine
from asyncstageout.cli.doctor import Result as Finding
from asyncstageout.cli.surroundings import DBSAccess, FTSAccess, Surroundings, dbs_access, fts_access
from asyncstageout.sandbox.airflow_env import LOGINS_FILE
from asyncstageout.sandbox.fts.service import Options, SandboxFTS
from asyncstageout.sandbox.layout import Layout, Ports, free_port, write_private
from asyncstageout.sandbox.serving import running, server
from asyncstageout.sandbox.sites.names import site_pfn
from asyncstageout.sandbox.tls import SandboxTLS
from sandbox.dbs_harness import dbs_bench
from sandbox.harness import certificates, site_bench

Aso: TypeAlias = Callable[..., Result]
SITES = ("T2_IT_Bari", "T2_CH_CERN")
TOKEN = "a-token"
HEALTHY: dict[str, Any] = {
    "health": {
        name: {"status": "healthy", f"latest_{name}_heartbeat": "2026-11-22T10:00:00+00:00"}
        for name in ("metadatabase", "scheduler", "dag_processor", "triggerer")
    },
    "import_errors": [],
    "dags": [{"dag_id": name, "is_paused": False} for name in doctor.DAGS],
    "connections": ["stageout_db", "fts3_default"],
}


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> SandboxTLS:
    return certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def fts(tls: SandboxTLS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FTSAccess]:
    served = SandboxFTS(Options(tmp_path_factory.mktemp("fts"), with_bytes=False))
    with running(server(served.app, tls=tls.server, client_ca=tls.ca)) as port:
        yield FTSAccess(f"https://127.0.0.1:{port}", str(tls.ca), str(tls.client.cert), str(tls.client.key))


@pytest.fixture(scope="module")
def dbs(tls: SandboxTLS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DBSAccess]:
    with dbs_bench(tls, tmp_path_factory.mktemp("dbs")) as bench:
        writer = f"{bench.url}/dbs/prod/phys03/DBSWriter"
        yield DBSAccess(writer, str(tls.ca), str(tls.client.cert), str(tls.client.key))


@pytest.fixture(scope="module")
def sites_port(tls: SandboxTLS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with site_bench(tls, tmp_path_factory.mktemp("sites"), *SITES) as bench:
        yield bench.port


class Airflow:
    """Answers what a doctor asks of Airflow, from ``facts`` that a test may spoil."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.url = ""
        self.app = Starlette(
            routes=[
                Route("/auth/token", self.log_in, methods=["POST"]),
                Route("/api/v2/monitor/health", self.health),
                Route("/api/v2/importErrors", self.import_errors),
                Route("/api/v2/dags", self.dags),
                Route("/api/v2/connections/{name}", self.connection),
            ]
        )

    async def log_in(self, request: Request) -> JSONResponse:
        given = await request.json()
        right = given == {"username": "admin", "password": "a-password"}
        return JSONResponse({"access_token": TOKEN} if right else {}, 201 if right else 401)

    async def health(self, request: Request) -> JSONResponse:
        return JSONResponse(self.facts["health"])

    async def import_errors(self, request: Request) -> JSONResponse:
        errors = self.facts["import_errors"]
        return self._known(request, {"import_errors": errors, "total_entries": len(errors)})

    async def dags(self, request: Request) -> JSONResponse:
        return self._known(request, {"dags": self.facts["dags"]})

    async def connection(self, request: Request) -> JSONResponse:
        there = request.path_params["name"] in self.facts["connections"]
        return self._known(request, {}, 200 if there else 404)

    def _known(self, request: Request, answer: object, status: int = 200) -> JSONResponse:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return JSONResponse({"detail": "Unauthorized"}, 401)
        return JSONResponse(answer, status)


@pytest.fixture(scope="module")
def _served_airflow() -> Iterator[Airflow]:
    served = Airflow()
    with running(server(served.app, tls=None)) as port:
        served.url = f"http://127.0.0.1:{port}"
        yield served


@pytest.fixture
def airflow(_served_airflow: Airflow) -> Airflow:
    _served_airflow.facts = deepcopy(HEALTHY)
    return _served_airflow


@pytest.fixture
def conn(catalogue_url: str, sites_port: int) -> Iterator[Connection]:
    with connect(catalogue_url) as connection:
        put_sites(connection, {site: site_pfn(site, "", sites_port) for site in SITES}, "test")
        ensure_partitions(connection, datetime.now(UTC).date())
        yield connection


@pytest.fixture
def well(fts: FTSAccess, dbs: DBSAccess, airflow: Airflow, tmp_path: Path) -> Surroundings:
    """What is not in the catalogue is well: an FTS, a DBS, an Airflow."""
    return Surroundings(Layout(tmp_path, tmp_path), None, fts, airflow.url, TOKEN, dbs)


@pytest.fixture
def patient(catalogue_url: str, conn: Connection, well: Surroundings) -> Iterator[Surroundings]:
    """Everything is well: a catalogue with sites too."""
    with closing(replace(well, given_catalogue=catalogue_url)) as all_well:
        yield all_well


def finding(patient: Surroundings, name: str) -> Finding:
    return next(result for result in examine(patient) if result.name == name)


def levels(patient: Surroundings) -> dict[str, Level]:
    return {result.name: result.level for result in examine(patient)}


def test_the_healthy_are_told_so(patient: Surroundings) -> None:
    results = list(examine(patient))
    assert {result.level for result in results} == {Level.OK}, results
    assert [result.name for result in results] == [check.name for check in CHECKS]
    assert "knows us as /DC=test/DC=sandbox/CN=aso of cms" in finding(patient, "FTS").text


def test_the_command(
    aso: Aso, patient: Surroundings, airflow: Airflow, fts: FTSAccess, dbs: DBSAccess
) -> None:
    options = ["--fts-url", fts.url, "--fts-ca", str(fts.ca), "--fts-cert", str(fts.cert)]
    options += [
        "--dbs-url",
        dbs.writer,
        "--fts-key",
        str(fts.key),
        "--airflow-url",
        airflow.url,
        "--airflow-token",
        TOKEN,
    ]
    result = aso("doctor", *options)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("ok ") == len(CHECKS)
    airflow.facts["connections"].remove("stageout_db")
    result = aso("doctor", *options, "--json")
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert not answer["healthy"]
    assert [check["name"] for check in answer["checks"] if check["level"] == "failed"] == ["connections"]


def test_without_anything_each_check_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ASO_CATALOGUE_URL", raising=False)
    nowhere = replace(Layout.load(), ports=Ports(api_server=free_port()))
    results = {result.name: result for result in examine(Surroundings(nowhere))}
    failed = {name for name, result in results.items() if result.level is Level.FAILED}
    assert failed == {"platform", "catalogue", "Airflow", "connections", "FTS"}
    assert all(results[name].remedy for name in failed)
    assert results["partitions"].text == "needs schema"
    assert results["DAGs"].level is Level.SKIPPED
    assert not (tmp_path / "home").exists(), "looking changes nothing"


def test_a_catalogue_that_does_not_answer(patient: Surroundings) -> None:
    found = levels(replace(patient, given_catalogue="postgresql://aso:secret@127.0.0.1:1/x"))
    assert found["catalogue"] is Level.FAILED
    assert found["schema"] is found["waiting files"] is found["sites"] is Level.SKIPPED
    assert found["FTS"] is found["DAGs"] is Level.OK, "the others are looked at all the same"


def test_an_old_schema(patient: Surroundings, catalogue_url: str) -> None:
    downgrade(catalogue_url, "base")
    result = finding(patient, "schema")
    assert (result.level, result.remedy) == (Level.FAILED, "`aso migrate`")
    assert levels(patient)["partitions"] is Level.SKIPPED


def test_partitions(patient: Surroundings, conn: Connection) -> None:
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    name = f"transfer_event_{tomorrow:%Y%m%d}"
    conn.execute(f"DROP TABLE {name}")
    result = finding(patient, "partitions")
    assert (result.level, name in result.text) == (Level.WARNING, True)
    conn.execute(
        "INSERT INTO transfer_event (transfer_id, at, to_state, attempt, step_run) VALUES (1, %s, 'NEW', 0, 1)",
        (datetime.combine(tomorrow, datetime.min.time(), UTC),),
    )
    result = finding(patient, "partitions")
    assert (result.level, "1 rows lie in a default partition" in result.text) == (Level.WARNING, True)
    ensure_partitions(conn, datetime.now(UTC).date())
    assert finding(patient, "partitions").level is Level.OK


def waiting_file(conn: Connection, waited: timedelta) -> None:
    conn.execute("INSERT INTO task (name, username) VALUES ('t', 'u')")
    conn.execute(
        "INSERT INTO transfer (request_id, task_id, username, source, destination, source_lfn,"
        " destination_lfn, size_bytes, due_at)"
        " VALUES ('r', 1, 'u', 'T2_IT_Bari', 'T2_CH_CERN', '/store/a', '/store/b', 1, now() - %s)",
        (waited,),
    )


@pytest.mark.parametrize(
    ("waited", "level"),
    [(timedelta(seconds=5), Level.OK), (timedelta(hours=1), Level.WARNING), (timedelta(hours=-1), Level.OK)],
)
def test_a_file_that_waits(patient: Surroundings, conn: Connection, waited: timedelta, level: Level) -> None:
    waiting_file(conn, waited)
    assert finding(patient, "waiting files").level is level


@pytest.mark.parametrize(("age", "level"), [(10, Level.OK), (600, Level.WARNING)])
def test_a_job_that_fts_never_confirmed(
    patient: Surroundings, conn: Connection, age: int, level: Level
) -> None:
    conn.execute("INSERT INTO cycle (dag_id, run_id) VALUES ('d', 'r')")
    conn.execute(
        "INSERT INTO fts_job (sid, fts_server, cycle_id, source, destination, identity, activity, priority,"
        " source_storage, source_protocol, destination_storage, destination_protocol, params, transfer_ids,"
        " open_files, size_bytes, planned_at)"
        " SELECT %s, 'f', 1, 'a', 'b', 'i', 'x', 3, s.storage_id, 'davs', s.storage_id, 'davs', '{}', '{1}', 1, 1,"
        " now() - make_interval(secs => %s) FROM site s LIMIT 1",
        (uuid4(), age),
    )
    assert finding(patient, "FTS jobs").level is level


@pytest.mark.parametrize(("age_s", "level"), [(5, Level.OK), (600, Level.WARNING), (None, Level.WARNING)])
def test_reports_that_nobody_applies(
    patient: Surroundings, conn: Connection, age_s: int | None, level: Level
) -> None:
    conn.execute(
        "INSERT INTO fts_report (sid, job_state, file_state, reason) VALUES (%s, 'ACTIVE', 'FINISHED', '')",
        (uuid4(),),
    )
    if age_s is not None:
        conn.execute(
            "INSERT INTO step_run (dag_id, run_id, task_id, actor, outcome, ended_at) VALUES"
            " ('stageout_sense', 'r', 'update_catalogue', 'airflow', 'success', now() - make_interval(secs => %s))",
            (age_s,),
        )
    assert finding(patient, "reports").level is level


def test_an_fts_that_is_not_there(patient: Surroundings, fts: FTSAccess) -> None:
    found = levels(replace(patient, given_fts=replace(fts, url="https://127.0.0.1:1")))
    assert (found["FTS"], found["credential"]) == (Level.FAILED, Level.SKIPPED)


def test_an_fts_that_takes_us_for_nobody(patient: Surroundings, fts: FTSAccess) -> None:
    result = finding(replace(patient, given_fts=replace(fts, cert=None, key=None)), "FTS")
    assert (result.level, "takes us for nobody" in result.text) == (Level.FAILED, True)


def test_a_dbs_that_is_not_there(patient: Surroundings, dbs: DBSAccess) -> None:
    result = finding(replace(patient, given_dbs=replace(dbs, migrate="https://127.0.0.1:1/x")), "DBS")
    assert (result.level, "127.0.0.1:1" in result.text) == (Level.FAILED, True)


def test_a_dbs_that_does_not_let_us(patient: Surroundings, dbs: DBSAccess) -> None:
    result = finding(replace(patient, given_dbs=replace(dbs, cert=None, key=None)), "DBS")
    assert (result.level, "403" in result.text) == (Level.FAILED, True)


def test_nothing_says_where_dbs_is(patient: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_DBS_DEFAULT", raising=False)
    result = finding(replace(patient, given_dbs=None), "DBS")
    assert (result.level, "nothing is published" in result.text) == (Level.WARNING, True)


@pytest.mark.parametrize(
    ("short_life", "level"), [(timedelta(days=7), Level.OK), (timedelta(days=1000), Level.WARNING)]
)
def test_a_certificate_that_ends_soon(
    patient: Surroundings, monkeypatch: pytest.MonkeyPatch, short_life: timedelta, level: Level
) -> None:
    monkeypatch.setattr(doctor, "SHORT_LIFE", short_life)
    assert finding(patient, "credential").level is level


def test_a_site_that_does_not_answer(patient: Surroundings, conn: Connection) -> None:
    put_sites(conn, {"T2_US_MIT": "davs://t2-us-mit.sandbox.test:1"}, "test")
    result = finding(patient, "sites")
    assert result.level is Level.FAILED
    assert "1 of 3 do not answer: T2_US_MIT" in result.text


def test_no_sites(patient: Surroundings, conn: Connection) -> None:
    conn.execute("DELETE FROM site")
    assert finding(patient, "sites").level is Level.WARNING


def test_a_heart_that_stands_still(patient: Surroundings, airflow: Airflow) -> None:
    airflow.facts["health"]["triggerer"] = {"status": None, "latest_triggerer_heartbeat": None}
    airflow.facts["health"]["scheduler"]["status"] = "unhealthy"
    result = finding(patient, "Airflow")
    assert result.level is Level.FAILED
    assert "scheduler was last seen 2026-11-22T10:00:00+00:00, triggerer never came" in result.text


def test_a_dag_file_that_does_not_parse(patient: Surroundings, airflow: Airflow) -> None:
    airflow.facts["import_errors"] = [
        {"filename": "dags/x.py", "stack_trace": "Traceback\n  File x\nSyntaxError: invalid syntax\n"}
    ]
    result = finding(patient, "DAGs")
    assert (result.level, result.text) == (Level.FAILED, "dags/x.py: SyntaxError: invalid syntax")


def test_dags_that_are_paused_or_missing(patient: Surroundings, airflow: Airflow) -> None:
    airflow.facts["dags"][0]["is_paused"] = True
    result = finding(patient, "DAGs")
    assert (result.level, result.text) == (Level.WARNING, "paused: stageout_transfer")
    del airflow.facts["dags"][1]
    result = finding(patient, "DAGs")
    assert (result.level, result.text) == (Level.FAILED, "not there: stageout_sense")


def test_a_missing_connection(
    patient: Surroundings, airflow: Airflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    airflow.facts["connections"] = []
    assert "no connection stageout_db and no fts3_default" in finding(patient, "connections").text
    monkeypatch.setenv("AIRFLOW_CONN_STAGEOUT_DB", "postgresql://")
    monkeypatch.setenv("AIRFLOW_CONN_FTS3_DEFAULT", "{}")
    fresh = replace(patient)
    assert finding(fresh, "connections").level is Level.OK


def test_logging_in_at_airflow(patient: Surroundings) -> None:
    nobody = replace(patient, airflow_token="wrong")
    assert levels(nobody)["DAGs"] is Level.FAILED
    embedded = replace(patient, airflow_token=None)
    assert "no login at Airflow is known" in finding(embedded, "DAGs").text
    embedded.layout.prepare()
    write_private(embedded.layout.secrets / LOGINS_FILE, json.dumps({"admin": "a-password"}))
    assert finding(embedded, "DAGs").level is Level.OK


def test_a_full_disk(patient: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "FEW_BYTES", 10**18)
    assert finding(patient, "disk").level is Level.WARNING
    monkeypatch.setattr(doctor, "TOO_FEW_BYTES", 10**18)
    assert finding(patient, "disk").level is Level.FAILED


def test_an_fts_connection_is_read() -> None:
    full = {"conn_type": "fts3", "host": "fts", "port": 1, "extra": {"ca_file": "c", "cert_file": "x"}}
    assert fts_access(json.dumps(full)) == FTSAccess("https://fts:1", "c", "x")
    texts = {"host": "fts", "password": "secret", "extra": json.dumps({"key_file": "k"})}
    assert fts_access(json.dumps(texts)) == FTSAccess("https://fts:8446", key="k", token="secret")
    for bad in ("{}", "[]", "fts3://host"):
        with pytest.raises(ValueError, match=r"host|JSON|Expecting"):
            fts_access(bad)


def test_a_dbs_connection_is_read() -> None:
    extra = {"ca_file": "c", "writer": "/w/DBSWriter", "reader": "https://other/r", "migrate": ""}
    full = {"conn_type": "dbs", "host": "dbs", "port": 1, "extra": extra}
    assert dbs_access(json.dumps(full)) == DBSAccess(
        "https://dbs:1/w/DBSWriter", "c", reader="https://other/r"
    )
    alone = {"host": "dbs", "extra": json.dumps({"key_file": "k"})}
    assert dbs_access(json.dumps(alone)) == DBSAccess("https://dbs:8443/dbs/prod/phys03/DBSWriter", key="k")
    for bad in ("{}", "[]", "dbs://host"):
        with pytest.raises(ValueError, match=r"dbs_default|JSON|Expecting"):
            dbs_access(bad)
