"""``aso sites``: loads descriptions, and says what they make of names and links."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from click.testing import Result

from asyncstageout.catalogue.connection import connect
from asyncstageout.cli import Advice

Aso: TypeAlias = Callable[..., Result]

LFN = "/store/user/alice/x.root"
TFC = """<storage-mapping>
<lfn-to-pfn protocol="direct" path-match="/+store/(.*)" result="/cms/store/$1" space-token="USER"/>
<lfn-to-pfn protocol="srmv2" chain="direct" path-match="(.*)" result="srm://se.example.org:8443/srm/managerv2?SFN=$1"/>
<lfn-to-pfn protocol="davs" path-match="/+store/(.*)" result="davs://se.example.org/store/$1"/>
<pfn-to-lfn protocol="direct" path-match="/cms/store/(.*)" result="/store/$1"/>
<pfn-to-lfn protocol="srmv2" path-match=".*SFN=(.*)" chain="direct" result="$1"/>
</storage-mapping>"""


def volume(site: str, access: str = "global-rw", **changes: Any) -> dict[str, Any]:
    protocol = {"protocol": "WebDAV", "access": access, "prefix": f"davs://{site.lower()}.example.org/cms"}
    fields = {"site": site, "volume": "disk", "type": "DISK", "rse": site, "fts": ["https://fts:8446"]}
    return fields | {"protocols": [protocol]} | changes


@pytest.fixture
def siteconf(tmp_path: Path) -> Path:
    root = tmp_path / "SITECONF"
    for site in ("T2_AA_One", "T2_BB_Two"):
        (root / site).mkdir(parents=True)
        (root / site / "storage.json").write_text(json.dumps([volume(site)]))
    (root / "T2_CC_Three" / "PhEDEx").mkdir(parents=True)
    (root / "T2_CC_Three" / "PhEDEx" / "storage.xml").write_text(TFC)
    return root


@pytest.fixture
def loaded(aso: Aso, siteconf: Path) -> Path:
    result = aso("sites", "load", str(siteconf))
    assert result.exit_code == 0, result.output
    return siteconf


def test_a_load_says_what_is_new_and_what_is_broken(aso: Aso, siteconf: Path, catalogue_url: str) -> None:
    path = siteconf / "T2_BB_Two" / "storage.json"
    path.write_text("[\n{")
    result = aso("sites", "load", str(siteconf))
    assert result.exit_code == 1
    assert "new     T2_AA_One" in result.output
    assert f"failed  T2_BB_Two  {path}: line 2: no JSON" in result.output
    path.write_text(json.dumps([volume("T2_BB_Two")]))
    result = aso("sites", "load", str(siteconf))
    assert result.exit_code == 0
    assert "3 sites read, 2 as before." in result.output
    with connect(catalogue_url) as conn:
        steps = conn.execute(
            "SELECT task_id, outcome, counts->>'failed' FROM step_run ORDER BY id"
        ).fetchall()
    assert steps == [("sites load", "success", "1"), ("sites load", "success", "0")]


def test_one_site_of_a_tree(aso: Aso, siteconf: Path) -> None:
    one = ("sites", "load", str(siteconf), "--site", "T2_AA_One", "--json")

    def locations() -> list[str]:
        return [source["location"] for source in json.loads(aso("sites", "list", "--json").stdout)["sources"]]

    assert [row["site"] for row in json.loads(aso(*one).stdout)["sites"]] == ["T2_AA_One"]
    assert locations() == [str(siteconf / "T2_AA_One" / "storage.json")], "the tree was not asked for"
    aso("sites", "forget", *locations())
    aso("sites", "load", str(siteconf))
    result = aso(*one)
    assert [row["outcome"] for row in json.loads(result.stdout)["sites"]] == ["same"]
    assert locations() == [str(siteconf)]


def test_a_load_of_several_goes_on_when_one_cannot_be_read(aso: Aso, siteconf: Path) -> None:
    result = aso(
        "sites", "load", "/nowhere/storage.json", str(siteconf / "T2_AA_One" / "storage.json"), "--json"
    )
    assert result.exit_code == 1
    assert [(one["site"], one["outcome"]) for one in json.loads(result.stdout)["sites"]] == [
        ("?", "failed"),
        ("T2_AA_One", "new"),
    ]


def test_what_cannot_be_read_at_all_is_a_sentence(aso: Aso) -> None:
    error = aso("sites", "load", "/nowhere/storage.json").exception
    assert isinstance(error, Advice)
    assert "/nowhere/storage.json cannot be read: No such file or directory" in str(error)


def test_a_dry_run_loads_nothing(aso: Aso, siteconf: Path) -> None:
    assert aso("sites", "load", str(siteconf), "--dry-run").exit_code == 0
    assert "No sites." in aso("sites", "list").output


def test_the_list_has_sites_problems_and_sources(aso: Aso, loaded: Path) -> None:
    (loaded / "T2_BB_Two" / "storage.json").write_text("{}")
    aso("sites", "load", str(loaded))
    listed = json.loads(aso("sites", "list", "--json").stdout)
    assert listed["sources"] == [{"location": str(loaded), "kind": "siteconf", "site": None}]
    kinds = {one["site"]: (one["kind"], bool(one["problem"])) for one in listed["sites"]}
    assert kinds == {
        "T2_AA_One": ("storage.json", False),
        "T2_BB_Two": ("storage.json", True),
        "T2_CC_Three": ("tfc", False),
    }
    text = aso("sites", "list").output
    assert "there must be a list of" in text
    assert "Looked at every day:" in text


@pytest.mark.usefixtures("loaded")
def test_show_has_the_rules_in_their_order(aso: Aso) -> None:
    text = aso("sites", "show", "T2_CC_Three").output
    assert "srmv2  source (preference 3), destination (preference 3)" in text
    assert "direct  not for copies between sites" in text
    assert "/+store/(.*)  →  /cms/store/$1  space USER" in text
    assert ".*SFN=(.*)  ←  $1  chain direct" in text
    shown = json.loads(aso("sites", "show", "T2_AA_One", "--json").stdout)
    assert shown["storage"]["fts"] == ["https://fts:8446"]


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    ("arguments", "code", "output"),
    [
        (("T2_CC_Three", LFN, "--protocol", "direct"), 0, "/cms/store/user/alice/x.root\n"),
        (
            ("T2_CC_Three", LFN),
            0,
            "direct       /cms/store/user/alice/x.root\n"
            "srmv2        srm://se.example.org:8443/srm/managerv2?SFN=/cms/store/user/alice/x.root\n"
            "davs         davs://se.example.org/store/user/alice/x.root\n",
        ),
        (("T2_CC_Three", "srm://se:1/srm?SFN=/cms/store/x", "--protocol", "srmv2"), 0, "/store/x\n"),
        (("T2_AA_One", f"davs://t2_aa_one.example.org/cms{LFN}"), 0, f"WebDAV       {LFN}\n"),
        (("T2_AA_One", "davs://elsewhere/x", "--protocol", "WebDAV"), 1, "WebDAV       no rule matches\n"),
    ],
)
def test_names_resolve_forward_and_back(aso: Aso, arguments: tuple[str, ...], code: int, output: str) -> None:
    result = aso("sites", "resolve", *arguments)
    assert (result.exit_code, result.stdout) == (code, output)


@pytest.mark.usefixtures("loaded")
def test_a_link_has_its_protocols_and_an_example(aso: Aso) -> None:
    answer = json.loads(aso("sites", "link", "T2_CC_Three", "T2_AA_One", LFN, "--json").stdout)
    assert answer["source"] == {
        "site": "T2_CC_Three",
        "protocol": "davs",
        "url": "davs://se.example.org/store/user/alice/x.root",
    }
    assert answer["destination"]["protocol"] == "WebDAV"
    assert "T2_CC_Three by davs" in aso("sites", "link", "T2_CC_Three", "T2_AA_One").output


def test_a_link_that_cannot_be_says_what_both_offer(aso: Aso, loaded: Path) -> None:
    (loaded / "T2_AA_One" / "storage.json").write_text(json.dumps([volume("T2_AA_One", "global-ro")]))
    aso("sites", "load", str(loaded))
    error = aso("sites", "link", "T2_BB_Two", "T2_AA_One").exception
    assert isinstance(error, Advice)
    assert "T2_BB_Two can be read by davs and T2_AA_One written by nothing" in str(error)


def test_what_is_forgotten_still_counts(aso: Aso, loaded: Path) -> None:
    assert "T2_AA_One, T2_BB_Two, T2_CC_Three" in aso("sites", "forget", str(loaded)).output
    assert json.loads(aso("sites", "list", "--json").stdout)["sources"] == []
    assert aso("sites", "resolve", "T2_AA_One", LFN).exit_code == 0
    assert isinstance(aso("sites", "forget", str(loaded)).exception, Advice)


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("show", "T2_XX_Nowhere"), "There is no description of T2_XX_Nowhere"),
        (("resolve", "T2_XX_Nowhere", LFN), "There is no description of T2_XX_Nowhere"),
        (("resolve", "T2_AA_One", LFN, "--protocol", "srm"), "T2_AA_One has no protocol srm"),
        (("link", "T2_AA_One", "T2_XX_Nowhere"), "There is no description of T2_XX_Nowhere"),
    ],
)
def test_a_mistake_is_a_sentence(aso: Aso, arguments: tuple[str, ...], problem: str) -> None:
    error = aso("sites", *arguments).exception
    assert isinstance(error, Advice)
    assert problem in str(error)
