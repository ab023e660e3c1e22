"""What DBS is told of a block and what it says, without a server."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncstageout.core import dbs_answers
from asyncstageout.core.dbs import (
    BadDataset,
    BlockContent,
    BlockFile,
    Lumi,
    NotPublishable,
    OutputConfig,
    block_body,
    block_name,
    encoded,
    file_problem,
    is_askable,
    payload_bytes,
    read_dataset,
    read_user_dataset,
)
from asyncstageout.core.dbs_answers import (
    UNREADABLE,
    Migration,
    parse_block,
    parse_dataset,
    parse_error,
    parse_file,
    parse_migration,
    parse_server_info,
)

DATASET = "/QCD_Pt-15to20/rossi-skim-00112233445566778899aabbccddeeff/USER"
CONFIG = OutputConfig("CMSSW_14_0_1", "00112233445566778899aabbccddeeff")
LFN = "/store/user/rossi/QCD/skim/261122_120000/0000/out_1.root"
FILE = BlockFile(LFN, 1000, "ad", 100, CONFIG, (Lumi(1, 1, 60), Lumi(1, 2, 40)), (), "1504266448")
BLOCK = BlockContent(block_name(DATASET, UUID(int=7)), "T2_IT_Bari", (FILE,))


# --- names ---


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("QCD/rossi-skim/USER", "/primary/processed/TIER"),
        ("/QCD/rossi-skim", "/primary/processed/TIER"),
        ("/QCD/rossi-skim/USER/more", "/primary/processed/TIER"),
        ("/1QCD/rossi-skim/USER", "primary dataset '1QCD'"),
        ("/QCD/rossi skim/USER", "processed dataset 'rossi skim'"),
        ("/QCD/rossi-skim/user", "data tier 'user'"),
        ("/QCD/rossi-skim/USER\n", "data tier"),
        (f"/{'q' * 100}/rossi-skim/USER", "primary dataset"),
        (f"/QCD/{'r' * 300}/USER", "at most 301 characters, not 310"),
    ],
)
def test_a_name_that_dbs_would_not_take_says_which_rule_it_breaks(name: str, fault: str) -> None:
    with pytest.raises(BadDataset, match=fault):
        read_dataset(name)


@pytest.mark.parametrize(
    ("name", "username", "fault"),
    [
        ("/QCD/rossi-skim/AOD", None, "is USER"),
        ("/QCD/rossi/USER", None, "begin with the user"),
        ("/QCD/rossi2-skim/USER", "rossi", "begin with rossi and a dash"),
    ],
)
def test_a_users_dataset_is_his(name: str, username: str | None, fault: str) -> None:
    with pytest.raises(BadDataset, match=fault):
        read_user_dataset(name, username)


def test_a_users_dataset_is_read() -> None:
    assert str(read_user_dataset(DATASET, "rossi")) == DATASET
    assert BLOCK.dataset == DATASET


@pytest.mark.parametrize("lfn", ["out.root", "/store/a b", "/store/[a]", "/store/*", "/store/'a'", "/" * 501])
def test_dbs_is_not_asked_for_what_it_would_take_apart(lfn: str) -> None:
    assert is_askable(LFN)
    assert not is_askable(lfn)


# --- the body ---


def test_the_body_of_a_block() -> None:
    config = {
        "release_version": "CMSSW_14_0_1",
        "pset_hash": "00112233445566778899aabbccddeeff",
        "app_name": "cmsRun",
        "output_module_label": "o",
        "global_tag": "crab3_tag",
    }
    assert block_body(BLOCK) == {
        "dataset_conf_list": [config],
        "file_conf_list": [{**config, "lfn": LFN}],
        "files": [
            {
                "logical_file_name": LFN,
                "file_type": "EDM",
                "check_sum": "1504266448",
                "adler32": "000000ad",
                "file_size": 1000,
                "event_count": 100,
                "file_lumi_list": [
                    {"run_num": 1, "lumi_section_num": 1, "event_count": 60},
                    {"run_num": 1, "lumi_section_num": 2, "event_count": 40},
                ],
            }
        ],
        "file_parent_list": [],
        "dataset_parent_list": [],
        "primds": {"primary_ds_name": "QCD_Pt-15to20", "primary_ds_type": "mc"},
        "processing_era": {"processing_version": 1, "description": "CRAB3_processing_era"},
        "acquisition_era": {"acquisition_era_name": "CRAB", "start_date": 0},
        "dataset": {
            "dataset": DATASET,
            "processed_ds_name": "rossi-skim-00112233445566778899aabbccddeeff",
            "data_tier_name": "USER",
            "dataset_access_type": "VALID",
            "physics_group_name": "CRAB3",
        },
        "block": {
            "block_name": f"{DATASET}#00000000-0000-0000-0000-000000000007",
            "origin_site_name": "T2_IT_Bari",
            "open_for_writing": 0,
            "file_count": 1,
            "block_size": 1000,
        },
    }


def test_events_of_sections_are_said_of_all_or_of_none() -> None:
    file = replace(FILE, lumis=(Lumi(1, 1, 60), Lumi(1, 2)))
    [row] = block_body(replace(BLOCK, files=(file,)))["files"]
    assert row["file_lumi_list"] == [
        {"run_num": 1, "lumi_section_num": 1},
        {"run_num": 1, "lumi_section_num": 2},
    ]


def test_a_section_is_said_once_and_the_first_time_counts() -> None:
    file = replace(FILE, lumis=(Lumi(1, 2, 0), Lumi(1, 1, 5), Lumi(1, 2, 9)))
    [row] = block_body(replace(BLOCK, files=(file,)))["files"]
    assert row["file_lumi_list"] == [
        {"run_num": 1, "lumi_section_num": 2, "event_count": 0},
        {"run_num": 1, "lumi_section_num": 1, "event_count": 5},
    ]


def test_parents_and_configurations_are_said_once() -> None:
    other = replace(FILE, lfn=LFN.replace("_1", "_2"), parents=("/store/a.root",), md5="d41d8cd9", cksum=None)
    body = block_body(
        replace(BLOCK, files=(replace(FILE, parents=("/store/a.root", "/store/a.root")), other))
    )
    assert body["file_parent_list"] == [
        {"logical_file_name": lfn, "parent_logical_file_name": "/store/a.root"} for lfn in (LFN, other.lfn)
    ]
    assert len(body["dataset_conf_list"]) == 1
    assert (body["files"][1]["check_sum"], body["files"][1]["md5"]) == ("NOTSET", "d41d8cd9")
    assert (body["block"]["file_count"], body["block"]["block_size"]) == (2, 2000)


@given(
    lumis=st.lists(
        st.builds(Lumi, st.integers(1, 9), st.integers(1, 99), st.none() | st.integers(0, 9)), max_size=5
    ),
    parents=st.lists(st.sampled_from(["/store/a.root", "/store/b.root"]), max_size=3),
    md5=st.none() | st.just("0" * 32),
)
def test_the_payload_of_a_file_is_what_it_adds(
    lumis: list[Lumi], parents: list[str], md5: str | None
) -> None:
    added = replace(
        FILE, lfn=LFN.replace("_1", "_2"), lumis=tuple(lumis), parents=tuple(parents), md5=md5, size_bytes=1
    )
    first = replace(FILE, parents=("/store/c.root",), size_bytes=1)
    before, after = (
        len(encoded(block_body(replace(BLOCK, files=files)))) for files in ((first,), (first, added))
    )
    assert after - before == payload_bytes(added)


# --- what DBS would refuse ---


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"lfn": "/store/user/rossi/a/v1.2/b.root"}, "of letters, digits"),
        ({"lfn": "/store/user/rossi/a/b.root"}, "two folders or more"),
        ({"lfn": "/store/mc/rossi/a/b.root"}, "/store/user"),
        ({"lfn": "/store/user/rossi/a/b/c.txt"}, ".root"),
        ({"lfn": f"/store/user/rossi/a/b/{'c' * 500}.root"}, "at most 500 characters"),
        ({"size_bytes": 0}, "no empty file"),
        ({"adler32": ""}, "hexadecimal"),
        ({"adler32": "123456789"}, "hexadecimal"),
        ({"events": -1}, "-1 events"),
        ({"events": 2**63}, "events"),
        ({"lumis": (Lumi(1, 1, -1),)}, "negative"),
        ({"lumis": (Lumi(-1, 1),)}, "negative"),
        ({"config": replace(CONFIG, release="")}, "release ''"),
        ({"config": replace(CONFIG, global_tag="g" * 256)}, "more than 255"),
    ],
)
def test_a_file_that_dbs_would_refuse_is_named(changes: dict[str, Any], fault: str) -> None:
    bad = replace(FILE, **{"lfn": "/store/user/rossi/a/b/bad.root", **changes})
    assert fault in (file_problem(bad) or "")
    with pytest.raises(NotPublishable, match=fault) as caught:
        block_body(replace(BLOCK, files=(FILE, bad)))
    assert caught.value.lfn == bad.lfn
    assert str(caught.value).startswith(bad.lfn)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"name": DATASET}, "<dataset>#<uuid>"),
        ({"name": f"{DATASET}#here"}, "<dataset>#<uuid>"),
        ({"name": f"/QCD/USER#{UUID(int=1)}"}, "/primary/processed/TIER"),
        ({"files": ()}, "no files"),
        ({"processing_version": 0}, "processing version 0"),
        ({"origin_site": ""}, "origin_site"),
        ({"physics_group": "g" * 101}, "physics_group"),
    ],
)
def test_a_block_that_dbs_would_refuse(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(NotPublishable, match=fault) as caught:
        block_body(replace(BLOCK, **changes))
    assert caught.value.lfn is None


def test_a_file_is_once_in_its_block() -> None:
    with pytest.raises(NotPublishable, match="2 times in its block") as caught:
        block_body(replace(BLOCK, files=(FILE, replace(FILE, events=1))))
    assert caught.value.lfn == LFN


# --- what it says ---

FILE_ROW = {
    "logical_file_name": LFN,
    "block_name": BLOCK.name,
    "dataset": DATASET,
    "file_size": 1000,
    "adler32": "AD",
    "is_file_valid": 0,
}


@pytest.mark.parametrize(
    ("said", "read"), [("AD", "000000ad"), ("NOTSET", None), ("", None), (None, None), ("123456789", None)]
)
def test_a_checksum_that_is_none_is_none(said: str | None, read: str | None) -> None:
    file = parse_file({**FILE_ROW, "adler32": said})
    assert (file.adler32, file.is_valid) == (read, False)


@pytest.mark.parametrize("missing", ["logical_file_name", "block_name", "dataset", "file_size"])
def test_half_a_file_is_none(missing: str) -> None:
    with pytest.raises(UNREADABLE):
        parse_file({**FILE_ROW, missing: None})


@pytest.mark.parametrize(
    "parse", [parse_file, parse_block, parse_dataset, parse_migration, parse_server_info]
)
@pytest.mark.parametrize("row", [None, 1, [], {}, [[]], [{}], {"error": {}}])
def test_what_is_not_in_the_contract_is_unreadable(parse: Any, row: Any) -> None:
    with pytest.raises(UNREADABLE):
        parse(row)


@pytest.mark.parametrize(
    ("state", "there", "failed", "meaning"),
    [
        (dbs_answers.QUEUED, False, False, "queued"),
        (dbs_answers.PENDING, False, False, "pending"),
        (dbs_answers.IN_PROGRESS, False, False, "in progress"),
        (dbs_answers.COMPLETED, True, False, "completed"),
        (dbs_answers.EXISTS, True, False, "nothing to do"),
        (dbs_answers.FAILED, False, False, "tries it again"),
        (dbs_answers.TERMINATED, False, True, "for good"),
        (77, False, False, "state 77"),
    ],
)
def test_what_the_states_of_a_migration_mean(state: int, there: bool, failed: bool, meaning: str) -> None:
    migration = Migration(1, BLOCK.name, "https://dbs.example/DBSReader", state)
    assert (migration.is_at_destination, migration.has_failed) == (there, failed)
    assert meaning in migration.meaning


@pytest.mark.parametrize(
    "body", [None, "", [], {}, [1], "<html>", {"errors": 1}, [{"data": 1}], [[{"error": {}}]]]
)
def test_what_is_no_word_of_dbs(body: Any) -> None:
    assert parse_error(body) is None


def test_an_error_is_told_by_its_outermost_words_and_its_innermost_reason() -> None:
    inner = "DBSError Code:101 Description:DBS DB error Function:dbs.x Message: Error: ORA-00001: unique"
    error = {"code": 110, "function": "dbs.y", "reason": inner}
    message = f"{'ab' * 32} unable to find x, error DBSError Code:1"
    said = parse_error([{"error": {**error, "message": message}}])
    assert said is not None
    assert said.text == "unable to find x: ORA-00001: unique"
    said = parse_error(json.loads('{"error": {"code": "?", "reason": "nil", "message": ""}}'))
    assert said is not None
    assert (said.code, said.text) == (0, "error 0 in ")
    said = parse_error({"error": "no route"})
    assert said is not None
    assert said.text == "no route"
