"""Descriptions of sites get into the catalogue: what is new is kept, what is broken is named and changes nothing."""

from __future__ import annotations

import json
import ssl
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, TypeAlias

import pytest
from psycopg import Connection

from asyncstageout.catalogue.site_sources import SiteSource, forget_source, looks, site_facts, sources
from asyncstageout.catalogue.storages import current_storages
from asyncstageout.clients import site_files
from asyncstageout.clients.site_files import SourceSilent, SourceUnreadable, find
from asyncstageout.core.storages.rucio import SAMPLE, SAMPLE_LFN
from asyncstageout.sandbox.tls import sandbox_tls
from asyncstageout.steps.load_sites import Look, SitesFail, load_sites, verdict
from asyncstageout.steps.recording import Summary
from clients.answering import Reply, answering

NOW = datetime(2026, 11, 23, 4, 17, tzinfo=UTC)
TFC = (
    '<storage-mapping>\n<lfn-to-pfn protocol="srmv2" path-match="/+store/(.*)"\n'
    ' result="srm://{}.example.org:8443/srm/managerv2?SFN=/cms/$1"/>\n</storage-mapping>'
)

Load: TypeAlias = Callable[..., tuple[Summary, dict[str, Look]]]


def volume(site: str, host: str = "se", **changes: Any) -> dict[str, Any]:
    return {
        "site": site,
        "volume": "disk",
        "type": "DISK",
        "rse": site,
        "fts": [],
        "protocols": [
            {"protocol": "WebDAV", "access": "global-rw", "prefix": f"davs://{host}.example.org:443/cms"}
        ],
    } | changes


class SiteConf:
    """A folder in SITECONF form."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def describe(self, site: str, *volumes: dict[str, Any]) -> Path:
        return self.write(f"{site}/storage.json", json.dumps(volumes or [volume(site)], indent=1))

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


@pytest.fixture
def siteconf(tmp_path: Path) -> SiteConf:
    conf = SiteConf(tmp_path / "SITECONF")
    conf.describe("T2_AA_One")
    conf.describe(
        "T2_BB_Two", volume("T2_BB_Two"), volume("T2_BB_Two", type="TAPE", volume="mss", rse="T2_BB_Two_Tape")
    )
    conf.write("T2_CC_Three/PhEDEx/storage.xml", TFC.format("three"))
    conf.write("README.md", "no site")
    conf.write("T2_DD_Four/JobConfig/site-local-config.xml", "<x/>")
    return conf


@pytest.fixture
def load(conn: Connection) -> Load:
    def run(*locations: Path | str, now: datetime = NOW, whose: str | None = None, **options: Any) -> Any:
        asked = [SiteSource(str(location), "tfc", whose) for location in locations]
        summary, results = load_sites(conn, asked, by="tester", now=now, **options)
        return summary, {look.site: look for look in results}

    return run


def versions(conn: Connection) -> dict[str, int]:
    return {name: version for name, (version, _) in current_storages(conn).items()}


def rows(conn: Connection) -> int:
    row = conn.execute("SELECT count(*) FROM storage").fetchone()
    assert row is not None
    return int(row[0])


def test_a_folder_is_loaded_and_remembered(conn: Connection, siteconf: SiteConf, load: Load) -> None:
    summary, found = load(siteconf.root)
    assert {name: look.outcome for name, look in found.items()} == dict.fromkeys(
        ["T2_AA_One", "T2_BB_Two", "T2_BB_Two_Tape", "T2_CC_Three"], "new"
    )
    assert summary.sentence == "Loaded from 1 source: 4 new, 0 changed, 0 as before"
    assert sources(conn) == [SiteSource(str(siteconf.root), "siteconf")]
    assert current_storages(conn)["T2_CC_Three"][1].kind == "tfc"
    facts = {one.site: one for one in site_facts(conn)}
    assert facts["T2_AA_One"].origin == str(siteconf.root / "T2_AA_One/storage.json")


def test_nothing_is_written_for_what_is_as_it_was(conn: Connection, siteconf: SiteConf, load: Load) -> None:
    load(siteconf.root)
    before, count = versions(conn), rows(conn)
    # Another form of the same.
    siteconf.describe("T2_AA_One", volume("T2_AA_One") | {"comment": "moved house"})
    siteconf.write("T2_CC_Three/PhEDEx/storage.xml", "<!-- new -->" + TFC.format("three"))
    summary, _ = load(siteconf.root)
    assert summary.counts == {"sources": 1, "new": 0, "changed": 0, "same": 4, "failed": 0}
    assert (versions(conn), rows(conn)) == (before, count)


def test_what_changed_is_another_version(conn: Connection, siteconf: SiteConf, load: Load) -> None:
    load(siteconf.root)
    before = versions(conn)
    siteconf.describe("T2_AA_One", volume("T2_AA_One", "new"))
    _, found = load(siteconf.root)
    assert [name for name, look in found.items() if look.outcome == "changed"] == ["T2_AA_One"]
    after = versions(conn)
    assert {name for name in after if after[name] != before[name]} == {"T2_AA_One"}


BROKEN = {
    "no JSON": ("[{", "line 1: no JSON"),
    "a field": (json.dumps([volume("T2_BB_Two", protocols=[{"protocol": "p"}])]), "[0].protocols[0].access"),
    "somebody else": (
        json.dumps([volume("T2_AA_One")]),
        "site: T2_AA_One, but this is the file of T2_BB_Two",
    ),
    "an RSE of somebody else": (
        json.dumps([volume("T2_BB_Two"), volume("T2_BB_Two", rse="T2_AA_One")]),
        "T2_AA_One is described by",
    ),
    "a slow pattern": (
        json.dumps(
            [
                volume(
                    "T2_BB_Two",
                    protocols=[
                        {
                            "protocol": "p",
                            "access": "virtual",
                            "rules": [{"lfn": "/x", "pfn": "x"}, {"lfn": "/(([a-z]+)*)/x", "pfn": "$1"}],
                        }
                    ],
                )
            ]
        ),
        "rule 2 of protocol p: '/(([a-z]+)*)/x' takes too long",
    ),
    "NUL": (json.dumps([volume("T2_BB_Two\0")]), "site: "),
    "too long": (" " * (site_files.MAX_BYTES + 1), "more than 5,000,000 bytes"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_and_the_others_go_on(
    conn: Connection, siteconf: SiteConf, load: Load, name: str
) -> None:
    load(siteconf.root)
    before = versions(conn)
    text, said = BROKEN[name]
    path = siteconf.write("T2_BB_Two/storage.json", text)
    siteconf.describe("T2_AA_One", volume("T2_AA_One", "new"))
    summary, found = load(siteconf.root)
    assert found["T2_AA_One"].outcome == "changed"
    problem = found["T2_BB_Two"].problem
    assert problem is not None
    assert problem.startswith(f"{path}: ")
    assert said in problem
    assert problem in summary.sentence
    after = versions(conn)
    for site in ("T2_BB_Two", "T2_BB_Two_Tape", "T2_CC_Three"):
        assert after[site] == before[site], "the version before counts"
    # The tape of the site is described by the same file.
    assert {one.site for one in looks(conn) if one.problem} == {"T2_BB_Two", "T2_BB_Two_Tape"}
    assert {one.site for one in site_facts(conn) if one.problem} == {"T2_BB_Two", "T2_BB_Two_Tape"}


def test_a_problem_keeps_its_age_and_is_red_after_a_day(
    conn: Connection, siteconf: SiteConf, load: Load
) -> None:
    load(siteconf.root)
    good = (siteconf.root / "T2_BB_Two/storage.json").read_text()
    siteconf.write("T2_BB_Two/storage.json", "[")
    for hours in (0, 12):
        load(siteconf.root, now=NOW + timedelta(hours=hours))
    assert verdict(conn, now=NOW + timedelta(hours=23)).counts == {"good": 2, "failing": 2}
    with pytest.raises(
        SitesFail, match=r"2 descriptions fail \(runbooks/site-description.md\): T2_BB_Two since"
    ):
        verdict(conn, now=NOW + timedelta(hours=24))
    siteconf.write("T2_BB_Two/storage.json", good)
    load(siteconf.root, now=NOW + timedelta(hours=24))
    assert verdict(conn, now=NOW + timedelta(hours=24)).counts == {"good": 4, "failing": 0}


def test_a_dry_run_changes_nothing(conn: Connection, siteconf: SiteConf, load: Load) -> None:
    before = versions(conn)
    summary, found = load(siteconf.root, dry_run=True)
    assert summary.sentence.startswith("Would load from 1 source: 4 new")
    assert len(found) == 4
    assert (sources(conn), looks(conn), versions(conn)) == ([], [], before)


def test_one_site_of_a_folder_with_its_rses(conn: Connection, siteconf: SiteConf, load: Load) -> None:
    load(siteconf.root)
    for site in ("T2_AA_One", "T2_BB_Two"):
        siteconf.write(f"{site}/storage.json", "[")
    _, found = load(siteconf.root, site="T2_BB_Two")
    assert set(found) == {"T2_BB_Two", "T2_BB_Two_Tape"}
    assert len(looks(conn)) == 4, "what was seen of the others stays"


def test_a_source_that_vanished_is_a_problem_of_all_its_sites(
    conn: Connection, siteconf: SiteConf, load: Load
) -> None:
    load(siteconf.root)
    before = versions(conn)
    siteconf.root.rename(siteconf.root.with_name("moved"))
    _, found = load(siteconf.root)
    assert {look.problem for look in found.values()} == {f"{siteconf.root}: No such file or directory"}
    assert len(looks(conn)) == 4
    assert versions(conn) == before
    load("/nowhere/storage.xml")
    assert [one.location for one in sources(conn)] == [str(siteconf.root)], (
        "what never was there is not remembered"
    )


def test_two_sources_do_not_take_turns(
    conn: Connection, siteconf: SiteConf, load: Load, tmp_path: Path
) -> None:
    load(siteconf.root)
    other = tmp_path / "copy.json"
    other.write_text(json.dumps([volume("T2_AA_One", "other")]))
    _, found = load(other)
    assert found["T2_AA_One"].outcome == "failed"
    assert f"T2_AA_One is described by {siteconf.root} already" in str(found["T2_AA_One"].problem)
    assert forget_source(conn, str(siteconf.root), "tester")
    assert not forget_source(conn, str(siteconf.root), "tester")
    assert load(other)[1]["T2_AA_One"].outcome == "changed"


def test_a_tfc_needs_a_site(conn: Connection, load: Load, tmp_path: Path) -> None:
    path = tmp_path / "tfc.xml"
    path.write_text(TFC.format("se"))
    _, found = load(path)
    assert "--site" in str(found["?"].problem)
    _, found = load(path, whose="T2_XX_Y")
    assert found["T2_XX_Y"].outcome == "new"
    assert SiteSource(str(path), "tfc", "T2_XX_Y") in sources(conn)


def test_who_changed_it_is_on_record(conn: Connection, siteconf: SiteConf, load: Load) -> None:
    load(siteconf.root)
    actors = conn.execute("SELECT DISTINCT actor FROM config_change WHERE object = 'site_source'").fetchall()
    assert actors == [("tester",)]


# --- where they come from ---


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, str]:
    made = sandbox_tls(tmp_path_factory.mktemp("tls"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.server.cert, made.server.key)
    return context, str(made.ca)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        site_files, "PATIENCE", site_files.Patience(tries=1, connect_s=5, read_s=5, deadline_s=10)
    )


def test_a_url_is_read_over_verified_tls(tls: tuple[ssl.SSLContext, str]) -> None:
    context, ca = tls
    with answering(lambda _: Reply(body=TFC.format("se").encode()), context) as server:
        url = f"{server.url}/SITECONF/T2_XX_Y/PhEDEx/storage.xml"
        found = find(url, ca=ca)
        assert (found.kind, found.files[0].site) == ("tfc", "T2_XX_Y")
        with pytest.raises(SourceUnreadable, match="certificate is not trusted"):
            find(url)


@pytest.mark.parametrize(
    ("reply", "error", "said"),
    [
        (Reply(404, b"<html>gone</html>"), SourceUnreadable, "it answered 404: gone"),
        (Reply(503), SourceSilent, "it answered 503"),
        (Reply(instead="reset"), SourceSilent, "no answer"),
        (Reply(body=b" " * (site_files.MAX_BYTES + 1)), SourceUnreadable, "more than 5,000,000 bytes"),
    ],
)
def test_a_url_that_gives_nothing_says_why(
    tls: tuple[ssl.SSLContext, str], reply: Reply, error: type[Exception], said: str
) -> None:
    context, ca = tls
    with answering(lambda _: reply, context) as server, pytest.raises(error, match=said):
        find(f"{server.url}/storage.json", ca=ca)


def test_nothing_is_taken_without_tls(tls: tuple[ssl.SSLContext, str]) -> None:
    context, ca = tls
    with pytest.raises(SourceUnreadable, match="only https"):
        find("http://127.0.0.1:1/storage.json")
    with answering(lambda _: Reply(body=b"[]")) as plain:
        away = Reply(302, headers={"Location": f"{plain.url}/storage.json"})
        with (
            answering(lambda _: away, context) as server,
            pytest.raises(SourceUnreadable, match="without TLS"),
        ):
            find(f"{server.url}/storage.json", ca=ca)


def test_a_folder_without_sites_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable, match="no folder of a site"):
        find(str(tmp_path))


def test_the_folder_of_one_site_is_its_file(siteconf: SiteConf) -> None:
    found = find(str(siteconf.root / "T2_CC_Three"))
    assert (found.kind, found.files[0].site) == ("tfc", "T2_CC_Three")


class RucioServer:
    """What ``rucio.client.Client`` is to us."""

    settings: ClassVar[dict[str, Any]] = {
        "deterministic": True,
        "protocols": [
            {
                "scheme": "davs",
                "hostname": "se.example.org",
                "port": 443,
                "prefix": "/cms/",
                "domains": {"wan": {"third_party_copy_read": 1, "third_party_copy_write": 1}},
            }
        ],
    }

    def get_rse(self, rse: str) -> dict[str, Any]:
        if rse != "T2_XX_Y":
            raise LookupError(rse)
        return self.settings

    def list_rse_attributes(self, rse: str) -> dict[str, Any]:
        return {"lfn2pfn_algorithm": "cmstfc", "country": "XX"}

    def lfns2pfns(self, rse: str, lfns: list[str], operation: str, scheme: str) -> dict[str, str]:
        assert (lfns, operation, scheme) == ([SAMPLE], "read", "davs")
        return {SAMPLE: f"davs://se.example.org:443/cms{SAMPLE_LFN}"}


@pytest.fixture
def rucio(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    class NotThere(LookupError):
        pass

    modules = {
        "rucio.client": SimpleNamespace(Client=RucioServer),
        "rucio.common.exception": SimpleNamespace(
            RucioException=LookupError, RSEProtocolNotSupported=NotThere
        ),
    }
    monkeypatch.setattr(site_files, "import_module", modules.__getitem__)
    return None


@pytest.mark.usefixtures("rucio")
def test_an_rse_is_asked_of_rucio(conn: Connection, load: Load) -> None:
    _, found = load("rucio:T2_XX_Y")
    assert found["T2_XX_Y"].outcome == "new"
    assert sources(conn)[0].kind == "rucio"
    with pytest.raises(SourceUnreadable, match="Rucio: LookupError"):
        find("rucio:T2_XX_Other")


def test_without_rucio_clients_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    absent: ModuleType | None = None
    for name in ("rucio", "rucio.client"):  # somebody may have imported it before
        monkeypatch.setitem(sys.modules, name, absent)
    with pytest.raises(SourceUnreadable, match=r"pip install 'asyncstageout\[rucio\]'"):
        find("rucio:T2_XX_Y")
