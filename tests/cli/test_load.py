"""``aso load``: good lines get in, bad ones are named, and a day is made up where its jobs would leave it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from click.testing import Result

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.lookup import state_counts
from asyncstageout.catalogue.storages import put_sites, site_urls
from asyncstageout.cli import Advice, load
from asyncstageout.sandbox.layout import Layout

Aso: TypeAlias = Callable[..., Result]
PREFIX = "davs://{}.sandbox.test:8443"


@pytest.fixture
def sites(catalogue_url: str) -> None:
    with connect(catalogue_url) as conn:
        put_sites(conn, {name: PREFIX.format(name) for name in ("T2_IT_Bari", "T2_CH_CERN")}, "test")


def request(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "task": "261122_alice_task",
        "username": "alice",
        "source": "T2_IT_Bari",
        "destination": "T2_CH_CERN",
        "source_lfn": f"/store/temp/user/alice.abc/out_{number}.root",
        "destination_lfn": f"/store/user/alice/out_{number}.root",
        "size_bytes": 1000,
    } | changes


def ndjson(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.usefixtures("sites")
def test_a_list_gets_in_once(aso: Aso, catalogue_url: str, tmp_path: Path) -> None:
    path = tmp_path / "requests.ndjson"
    path.write_text(ndjson(*map(request, range(3))) + "\n")
    assert (first := aso("load", str(path))).exit_code == 0, first.output
    assert "3 files taken in, 0 were there already, 0 refused." in first.output
    assert "0 files taken in, 3 were there already" in aso("load", str(path)).output
    with connect(catalogue_url) as conn:
        assert state_counts(conn) == {"NEW": 3}
        steps = conn.execute("SELECT dag_id, task_id, actor, outcome, counts->>'created' FROM step_run")
        assert [row[:2] + row[3:] for row in steps] == [
            (None, "load", "success", "3"),
            (None, "load", "success", "0"),
        ]


BAD_LINES = {
    "not JSON": ("{", "not JSON"),
    "not UTF-8": (b'{"task": "\xff"}', "not JSON"),
    "not an object": ("[1]", "request:"),
    "a field is missing": (json.dumps({"task": "x"}), "username: Field required"),
    "LFN": (json.dumps(request(7, source_lfn="/etc/passwd")), "must start with /store/"),
    "unknown site": (json.dumps(request(7, source="T2_XX_Nowhere")), "unknown source site T2_XX_Nowhere"),
    "somebody else's task": (
        json.dumps(
            request(
                7,
                username="bob",
                source_lfn="/store/temp/user/bob.abc/out_7.root",
                destination_lfn="/store/user/bob/out_7.root",
            )
        ),
        "belongs to alice",
    ),
    "somebody else's area": (json.dumps(request(7, username="bob")), "is alice's temporary area"),
    "NUL": (json.dumps(request(7, task="a\0b")), "NUL"),
    "too deep": ("[" * 100_000, "not JSON"),
}


@pytest.mark.usefixtures("sites")
@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named_and_the_rest_go_on(aso: Aso, catalogue_url: str, name: str) -> None:
    line, reason = BAD_LINES[name]
    bad = line if isinstance(line, bytes) else line.encode()
    typed = ndjson(request(1)).encode() + b"\n" + bad + b"\n" + ndjson(request(2)).encode()
    result = aso("load", "-", "--json", typed=typed)
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert (answer["created"], answer["exists"], answer["refused"]) == (2, 0, 1)
    assert answer["refusals"][0]["line"] == 3
    assert reason in answer["refusals"][0]["reason"]


@pytest.mark.usefixtures("sites")
def test_the_first_twenty_refusals_are_shown(
    aso: Aso, catalogue_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "BATCH", 8)
    records = [request(n) if n % 2 else request(n, source="T2_XX_Nowhere") for n in range(60)]
    result = aso("load", "-", typed=ndjson(*records))
    assert result.exit_code == 1
    assert "30 files taken in, 0 were there already, 30 refused." in result.output
    shown = [int(line.split()[0]) for line in result.output.splitlines() if "unknown source" in line]
    assert shown == list(range(1, 41, 2))
    assert "and 10 more" in result.output


def test_a_day_lies_at_its_sources_and_waits_in_the_catalogue(
    aso: Aso, catalogue_url: str, tmp_path: Path
) -> None:
    day = ("load", "--day", "--files", "40", "--users", "5", "--sites", "6", "--json")
    assert json.loads(aso(*day).stdout)["created"] == 40
    assert json.loads(aso(*day).stdout)["exists"] == 40, "the same command is the same day"
    root = Layout.load().sites
    with connect(catalogue_url) as conn:
        rows = conn.execute("SELECT source, source_lfn, size_bytes FROM transfer").fetchall()
        urls = site_urls(conn)
    assert len(urls) == 6
    assert urls["T2_CH_CERN"].startswith(f"davs://t2-ch-cern.sandbox.test:{Layout.load().ports.sites}/store")
    assert {path.name for path in root.iterdir()} == set(urls)
    for source, lfn, size_bytes in rows:
        assert (root / source / lfn[1:]).stat().st_size == size_bytes


def test_another_size_of_day_is_other_files(aso: Aso) -> None:
    assert json.loads(aso("load", "--day", "--files", "10", "--json").stdout)["created"] == 10
    assert json.loads(aso("load", "--day", "--files", "12", "--json").stdout)["created"] == 12


def test_a_day_without_bytes_writes_none(aso: Aso, catalogue_url: str) -> None:
    assert aso("load", "--day", "--files", "30", "--no-bytes").exit_code == 0
    assert not [path for path in Layout.load().sites.rglob("*") if path.is_file()]
    with connect(catalogue_url) as conn:
        row = conn.execute("SELECT max(size_bytes) FROM transfer").fetchone()
    assert row is not None
    assert row[0] > 100_000_000


def test_a_day_does_not_touch_a_real_catalogue(aso: Aso, catalogue_url: str) -> None:
    with connect(catalogue_url) as conn:
        put_sites(conn, {"T2_CH_CERN": "davs://eoscms.example.org:443"}, "test")
    error = aso("load", "--day", "--files", "3").exception
    assert isinstance(error, Advice)
    assert "real sites: T2_CH_CERN" in str(error)
    with connect(catalogue_url) as conn:
        assert list(site_urls(conn)) == ["T2_CH_CERN"]
        assert site_urls(conn)["T2_CH_CERN"].startswith("davs://eoscms.example.org:443/")


def test_a_full_disk_is_said_before_anything_is_written(aso: Aso, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "ROOM_BYTES", 10**18)
    error = aso("load", "--day", "--files", "3").exception
    assert isinstance(error, Advice)
    assert "are free" in str(error)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "Nothing to load."),
        (("x.ndjson", "--day"), "not both"),
        (("/nowhere/x.ndjson",), "cannot be read: No such file"),
    ],
)
def test_what_cannot_be_loaded_is_a_sentence(aso: Aso, arguments: tuple[str, ...], problem: str) -> None:
    error = aso("load", *arguments).exception
    assert isinstance(error, Advice)
    assert problem in str(error)


def test_no_catalogue_is_a_sentence(aso: Aso, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASO_CATALOGUE_URL", "postgresql://aso:x@127.0.0.1:1/x")
    error = aso("load", "--day").exception
    assert isinstance(error, Advice)
    assert "does not answer" in str(error)
    monkeypatch.delenv("ASO_CATALOGUE_URL")
    error = aso("load", "--day").exception
    assert isinstance(error, Advice)
    assert "no catalogue yet" in str(error)
