"""What submitters say of files: read as CRAB writes it, refused by the name of the field, held against the file."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asyncstageout.core.blocks import PublicationSettings
from asyncstageout.core.crab import PUBLICATION_MOVES, metadata_id, run_lumis
from asyncstageout.core.dbs import Lumi, file_problem
from asyncstageout.core.publication import (
    ArrivedFile,
    Claim,
    Facts,
    Unpublishable,
    Verdict,
    facts_of,
    facts_or_problem,
    judge,
    read_metadata,
)
from asyncstageout.core.states import (
    PUBLICATION_ARRIVALS,
    PUBLICATION_TRANSITIONS,
    FileType,
    PublicationState,
)
from fixtures.publication import DATASET, body, lfn

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
RULES = PublicationSettings()


@pytest.mark.parametrize(
    "runlumi",
    [
        {"1": {"12": "100", "13": "50"}, "2": {"7": "1"}},
        {1: {12: 100, 13: 50}, 2: {7: 1}},
    ],
)
def test_lumis_with_their_events(runlumi: Any) -> None:
    found = read_metadata(body(runlumi=runlumi)).lumis
    assert found == (Lumi(1, 12, 100), Lumi(1, 13, 50), Lumi(2, 7, 1))


@pytest.mark.parametrize(
    "runlumi",
    [
        {"1": ["12", "13"]},
        {"1": [12, 13, 12]},
        {"1": {"12": "None", "13": "None"}},
        {"1": {"12": None, "13": "5"}},
    ],
)
def test_lumis_without_events(runlumi: Any) -> None:
    """Events of some sections and not of others would read as none at all."""
    assert read_metadata(body(runlumi=runlumi)).lumis == (Lumi(1, 12), Lumi(1, 13))


def test_what_crab_fills_in_counts_as_not_said() -> None:
    said = read_metadata(body(3, cksum="0", md5="asda", globaltag="None", acquisitionera="null"))
    assert (said.cksum, said.md5, said.global_tag, said.era) == (None, None, None, None)
    told = said.of(lfn(3), 10, "4", ())
    assert (told.config.global_tag, told.config.pset_hash) == (
        "crab3_tag", "94ba0e06145abd65ccb1d21786dc7e1d",
    )  # fmt: skip
    assert file_problem(told) is None


def test_the_names_of_a_put_are_understood_too() -> None:
    said = read_metadata(
        {
            "outtype": "EDM", "outdatasetname": DATASET, "appver": "CMSSW_14_0_1", "events": 5, "runlumi": {},
            "outsize": 7, "inparentlfns": [lfn(1), "file:/tmp/x.root", 3], "globalTag": "auto:mc",
        }
    )  # fmt: skip
    assert (said.size_bytes, said.parents, said.global_tag) == (7, (lfn(1),), "auto:mc")
    assert said.pset_hash == DATASET.split("/")[2].rpartition("-")[2]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"outdataset": "x"}, "outdataset"),
        ({"outdataset": "/Mc/alice-x-0a/AOD"}, "outdataset"),
        ({"swversion": ""}, "swversion"),
        ({"inevents": -1}, "inevents"),
        ({"inevents": "many"}, "inevents"),
        ({"runlumi": []}, "runlumi"),
        ({"runlumi": {"a": [1]}}, "runlumi"),
        ({"runlumi": {"1": 7}}, "runlumi"),
        ({"runlumi": {"1": [[1]]}}, "runlumi"),
        ({"runlumi": {"1": {"2": "-3"}}}, "runlumi"),
        ({"runlumi": {"1": {"2": {}}}}, "runlumi"),
        ({"runlumi": {"1": [4294967296]}}, "runlumi"),
        ({"parents": "x"}, "parents"),
        ({"adler32": "xyz"}, "adler32"),
        ({"filesize": -1}, "filesize"),
        ({"filetype": "LOG"}, "filetype"),
        ({"lfn": "/store/user/alice/x.root"}, "metadata"),
    ],
)
def test_a_field_that_is_wrong_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(Unpublishable) as refused:
        facts_of(body(**changes))
    assert refused.value.field == field
    assert str(facts_or_problem(body(**changes))).startswith(f"{field}: ")


def test_a_missing_field_is_named() -> None:
    assert facts_or_problem({}) == "outdataset: Field required"


FILE = ArrivedFile(1, "alice", FileType.OUTPUT, lfn(0), 1000, "00000001", NOON)
FACTS = facts_of(body(0))


@pytest.mark.parametrize(
    ("file", "facts", "verdict"),
    [
        (FILE, FACTS, Verdict.READY),
        (FILE._replace(size_bytes=0, adler32=None), FACTS, Verdict.READY),
        (FILE, FACTS._replace(size_bytes=None, adler32=None, lfn=None), Verdict.READY),
        (FILE._replace(type=FileType.LOG), FACTS, Verdict.NOT_WANTED),
        (FILE._replace(claim=Claim.OTHERS), FACTS, Verdict.WAIT),
        (FILE._replace(claim=Claim.NOT_YET), FACTS, Verdict.WAIT),
        (FILE, None, Verdict.WAIT),
        (FILE._replace(ended_at=NOON - timedelta(days=4)), None, Verdict.FAILED),
        (FILE, "outdataset: Field required", Verdict.FAILED),
        (FILE, FACTS._replace(size_bytes=7), Verdict.FAILED),
        (FILE._replace(size_bytes=0), FACTS._replace(size_bytes=None), Verdict.FAILED),
        (FILE, FACTS._replace(adler32="0000000f"), Verdict.FAILED),
        (FILE._replace(adler32=None), FACTS._replace(adler32=None), Verdict.FAILED),
        (FILE, FACTS._replace(dataset="/Mc/bob-test-0a/USER"), Verdict.FAILED),
        (FILE, FACTS._replace(lfn=lfn(5)), Verdict.FAILED),
    ],
)
def test_what_becomes_of_a_file(file: ArrivedFile, facts: Facts | str | None, verdict: Verdict) -> None:
    judgement = judge(file, facts, NOON, RULES)
    assert judgement.verdict is verdict
    assert bool(judgement.reason) == (verdict in (Verdict.FAILED, Verdict.NOT_WANTED))
    assert (judgement.due_at is not None) == (verdict is Verdict.WAIT)


def test_a_groups_files_go_into_its_datasets() -> None:
    file = FILE._replace(lfn="/store/group/higgs/mc/test/out_0.root")
    facts = FACTS._replace(lfn=None, dataset="/Mc/higgs-test-0a/USER")
    assert judge(file, facts, NOON, RULES).verdict is Verdict.READY
    assert judge(FILE, facts._replace(lfn=lfn(0)), NOON, RULES).verdict is Verdict.FAILED


def test_every_move_that_a_publisher_of_crabs_may_make_is_legal() -> None:
    assert set(PUBLICATION_TRANSITIONS) == set(PublicationState)
    for end, starts in PUBLICATION_MOVES.items():
        for start in starts - {end}:
            assert end in PUBLICATION_TRANSITIONS[start], (start, end)
    assert set(PUBLICATION_TRANSITIONS) >= PUBLICATION_ARRIVALS


def test_crabs_two_lists_become_runs_with_lumis() -> None:
    assert run_lumis(["1", "1"], ["2:3", "4"]) == {"1": {"2": "3", "4": "None"}}
    assert read_metadata(body(runlumi=run_lumis(["1"], ["2:3,4:5"]))).lumis == (Lumi(1, 2, 3), Lumi(1, 4, 5))
    assert len(metadata_id("a", "b")) == 56
