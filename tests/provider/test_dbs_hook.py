"""Connections of type ``dbs``, as Airflow gives them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from airflow.providers_manager import ProvidersManager

from asyncstageout.provider import get_provider_info
from asyncstageout.provider.dbs import DBSHook, PublicationSettings
from asyncstageout.sandbox.layout import free_port
from asyncstageout.sandbox.tls import SandboxTLS
from sandbox.dbs_harness import DBSBench, a_block, body_of, dbs_bench, lfn
from sandbox.harness import certificates

Connect: TypeAlias = Callable[..., DBSHook]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> SandboxTLS:
    return certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def dbs(tls: SandboxTLS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DBSBench]:
    with dbs_bench(tls, tmp_path_factory.mktemp("dbs")) as bench:
        yield bench


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    def put(extra: dict[str, Any] | None = None, **changes: Any) -> DBSHook:
        facts = {"conn_type": "dbs", "host": "dbs.example", "extra": extra or {}, **changes}
        monkeypatch.setenv("AIRFLOW_CONN_DBS_DEFAULT", json.dumps(facts))
        return DBSHook()

    return put


@pytest.fixture
def served(connect: Connect, dbs: DBSBench) -> Callable[..., DBSHook]:
    """Return a hook for a DBS that is there, its extra as told."""

    def put(**extra: Any) -> DBSHook:
        access = dbs.access
        certificate = {"ca_file": access.ca, "cert_file": access.cert_file, "key_file": access.key_file}
        port = int(dbs.url.rpartition(":")[2])
        return connect({**certificate, **extra}, host="127.0.0.1", port=port)

    return put


def test_the_connection_type_has_a_form() -> None:
    [info] = [one for one in get_provider_info()["connection-types"] if one["connection-type"] == "dbs"]
    assert info["hook-class-name"] == f"{DBSHook.__module__}.{DBSHook.__name__}"
    shown = {
        name.removeprefix("extra__dbs__")
        for name in ProvidersManager().connection_form_widgets
        if name.startswith("extra__dbs__")
    }
    places = {"writer", "reader", "migrate", "global_reader", "ca_file", "crl", "cert_file", "key_file"}
    assert set(info["conn-fields"]) == shown == places | {field.name for field in fields(PublicationSettings)}


def test_what_the_form_says_of_defaults_is_so() -> None:
    [info] = [one for one in get_provider_info()["connection-types"] if one["connection-type"] == "dbs"]
    for name, value in asdict(PublicationSettings()).items():
        assert f"{value} when empty" in info["conn-fields"][name]["description"]


# --- where ---


def test_the_servers_are_on_the_host(connect: Connect) -> None:
    with connect().get_conn() as client:
        assert client.writer_url == "https://dbs.example:8443/dbs/prod/phys03/DBSWriter"
        assert client.reader_url == "https://dbs.example:8443/dbs/prod/phys03/DBSReader"
        assert client.migrate_url == "https://dbs.example:8443/dbs/prod/phys03/DBSMigrate"


def test_a_server_may_be_elsewhere(connect: Connect) -> None:
    extra = {
        "writer": "/dbs/int/phys03/DBSWriter/",
        "migrate": "https://other.example/dbs/DBSMigrate",
        "global_reader": "https://global.example/dbs/prod/global/DBSReader/",
    }
    hook = connect(extra, schema="http", port=80)
    with hook.get_conn() as client:
        assert client.writer_url == "http://dbs.example:80/dbs/int/phys03/DBSWriter"
        assert client.reader_url == "http://dbs.example:80/dbs/int/phys03/DBSReader"
        assert client.migrate_url == "https://other.example/dbs/DBSMigrate"
    reader = hook.get_global_reader()
    assert reader is not None
    with closing(reader):
        assert reader.reader_url == "https://global.example/dbs/prod/global/DBSReader"


def test_there_may_be_no_other_dbs(connect: Connect) -> None:
    assert connect().get_global_reader() is None


# --- how ---


def test_without_a_word_it_is_as_it_was(connect: Connect) -> None:
    empty = {field.name: "" for field in fields(PublicationSettings)}
    assert connect().settings == connect(empty).settings == PublicationSettings()
    settings = PublicationSettings()
    assert (settings.block_files, settings.block_lumis, settings.block_payload_bytes) == (
        100,
        100_000,
        5 * 10**7,
    )
    assert (settings.close_after_s, settings.first_after_s, settings.oldest_s) == (18_800, 600, 259_200)


def test_numbers_may_be_texts_as_forms_make_them(connect: Connect) -> None:
    settings = connect(
        {"block_files": " 50 ", "max_tries": 5, "close_after_s": 0, "physics_group": "B"}
    ).settings
    assert (settings.block_files, settings.max_tries, settings.close_after_s) == (50, 5, 0)
    assert settings.physics_group == "B"


@pytest.mark.parametrize(
    ("extra", "fault"),
    [
        ({"block_files": "many"}, "block_files is a whole number from 1 to 10,000, not 'many'"),
        ({"block_files": 0}, "block_files"),
        ({"block_lumis": -1}, "block_lumis"),
        ({"block_payload_bytes": 100}, "block_payload_bytes is a whole number from 10,000"),
        ({"oldest_s": 1.5}, "oldest_s"),
        ({"max_tries": True}, "max_tries"),
        ({"metadata_wait_s": "²"}, "metadata_wait_s"),
        ({"processing_version": "0"}, "processing_version"),
        ({"acquisition_era": "e" * 101}, "acquisition_era has at most 100 characters"),
        ({"primary_dataset_type": "m\nc"}, "primary_dataset_type"),
    ],
)
def test_a_wrong_limit_is_named(connect: Connect, extra: dict[str, Any], fault: str) -> None:
    hook = connect(extra)
    with pytest.raises(ValueError, match=fault):
        _ = hook.settings
    ok, message = hook.test_connection()
    assert not ok
    assert message.startswith("connection dbs_default: ")


@pytest.mark.parametrize(
    ("extra", "changes", "fault"),
    [
        ({}, {"host": ""}, "has no host"),
        ({"writer": "dbs/DBSWriter"}, {}, "writer is neither a path"),
        ({"reader": "ftp://x/DBSReader"}, {}, "reader is neither a path"),
        ({"global_reader": "https:///DBSReader"}, {}, "global_reader is neither a path"),
        ({"migrate": "https://x/y?z=1"}, {}, "migrate is neither a path"),
        ({"crl": "all"}, {}, "crl is leaf, chain or empty, not 'all'"),
        ({"ca_file": "/no/such"}, {}, "/no/such"),
    ],
)
def test_a_wrong_place_is_named(
    connect: Connect, extra: dict[str, Any], changes: dict[str, Any], fault: str
) -> None:
    hook = connect(extra, **changes)
    ok, message = hook.test_connection()
    assert (ok, fault in message) == (False, True), message


# --- with a DBS ---


def test_the_connection_test_says_what_is_there(served: Callable[..., DBSHook]) -> None:
    ok, message = served(global_reader="/dbs/prod/global/DBSReader").test_connection()
    assert ok, message
    for path in ("phys03/DBSWriter", "phys03/DBSReader", "phys03/DBSMigrate", "global/DBSReader"):
        assert f"/dbs/prod/{path} is v00.06" in message


@pytest.mark.parametrize(
    ("extra", "fault"),
    [
        ({"cert_file": "", "key_file": ""}, "403"),
        ({"reader": "/dbs/prod/phys04/DBSReader"}, "Check the paths"),
        ({"ca_file": "/etc/ssl/certs/ca-certificates.crt"}, "certificate"),
        ({"global_reader": f"https://127.0.0.1:{free_port()}/DBSReader"}, "127.0.0.1"),
    ],
)
def test_the_connection_test_says_what_is_wrong(
    served: Callable[..., DBSHook], extra: dict[str, str], fault: str
) -> None:
    if not Path(extra.get("ca_file", "/")).exists():
        pytest.skip("this machine has no authorities of its own")
    ok, message = served(**extra).test_connection()
    assert (ok, fault in message) == (False, True), message


def test_it_writes_and_reads(served: Callable[..., DBSHook]) -> None:
    hook = served(global_reader="/dbs/prod/global/DBSReader")
    with hook.get_conn() as client:
        client.insert_block(body_of(0))
        assert client.blocks_of_files([lfn(0)]) == {lfn(0): a_block(0).name}
    reader = hook.get_global_reader()
    assert reader is not None
    with reader:
        assert reader.files([lfn(0)]) == {}
