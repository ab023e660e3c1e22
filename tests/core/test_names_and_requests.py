"""Bad names and bad requests are told apart from good ones, each with its reason; the others go on."""

from __future__ import annotations

import re
from typing import Any

import pytest

from asyncstageout.core.naming import BadName, check_lfn, check_site, normal_adler32, request_id
from asyncstageout.core.requests import TransferRequest, read_requests

GOOD: dict[str, Any] = {
    "task": "261122_101010_alice_mc",
    "username": "alice",
    "source": "T2_IT_Bari",
    "destination": "T2_CH_CERN",
    "source_lfn": "/store/temp/user/alice.0a1b/mc/out_1.root",
    "destination_lfn": "/store/user/alice/mc/out_1.root",
    "size_bytes": 12,
    "adler32": "a1b2c3",
}


@pytest.mark.parametrize(
    ("lfn", "rule"),
    [
        ("/store/user/../x", "'..'"),
        ("/store/user//x", "empty parts"),
        ("/store/user/./x", "'.'"),
        ("/store/user/x/", "empty parts"),
        ("/etc/passwd", "/store/"),
        ("store/user/x", "/store/"),
        ("/store/user/a b", "character"),
        ("/store/user/a;rm", "character"),
        ("/store/user/a?x=1", "character"),
        ("/store/user/a%2e%2e", "character"),
        ("/store/user/a\n", "character"),
        ("/store/" + "x" * 500, "limit is 500"),
    ],
)
def test_bad_lfn(lfn: str, rule: str) -> None:
    with pytest.raises(BadName, match=rule.replace(".", r"\.")):
        check_lfn(lfn)


def test_good_lfn() -> None:
    for lfn in (GOOD["source_lfn"], "/store/group/phys-higgs/a_b+c=d~e/0000/log/f.tgz"):
        assert check_lfn(lfn) == lfn


@pytest.mark.parametrize("site", ["Bari", "T2_IT", "T5_IT_Bari", "T2_it_Bari", "T2_IT_Ba ri", "T2_IT_Bari\n"])
def test_bad_site(site: str) -> None:
    with pytest.raises(BadName):
        check_site(site)


def test_adler32_is_padded_as_storages_write_it() -> None:
    assert normal_adler32("A1B2C3") == "00a1b2c3"
    for bad in ("", "xyz", "123456789", "0x12", "-1"):
        with pytest.raises(BadName):
            normal_adler32(bad)


def test_request_id_is_crabs() -> None:
    # sha224 of the source LFN, as CRAB's getHashLfn computes it.
    assert request_id("/store/temp/user/x") == "745682a0f408ee9ce0ff212d018b1673189e7e7be5fb39ecf839c3d3"
    assert TransferRequest(**GOOD).request_id == request_id(GOOD["source_lfn"])


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"size_bytes": -1}, "size_bytes", "greater than or equal to 0"),
        ({"size_bytes": "12"}, "size_bytes", "integer"),
        ({"size_bytes": True}, "size_bytes", "integer"),
        ({"adler32": "zzzz"}, "adler32", "hexadecimal"),
        ({"source_lfn": "/store/temp/../../etc/passwd"}, "source_lfn", r"\.\."),
        ({"source": "nowhere"}, "source", "T2_IT_Bari"),
        ({"priority": 6}, "priority", "less than or equal to 5"),
        ({"username": "a b"}, "username", "pattern"),
        ({"task": ""}, "task", "pattern"),
        ({"task": "a\0b"}, "task", "pattern"),
        ({"vo_group": "a\nb"}, "vo_group", "pattern"),
        ({"activity": ""}, "activity", "pattern"),
        ({"job_id": "1\0"}, "job_id", "pattern"),
        ({"color": "red"}, "color", "not permitted"),
        ({"type": "exe"}, "type", "output"),
    ],
)
def test_a_bad_field_is_named_and_the_others_go_on(change: dict[str, Any], field: str, reason: str) -> None:
    other = GOOD | {"source_lfn": "/store/temp/user/alice.0a1b/mc/out_2.root"}
    good, bad = read_requests([GOOD | change, other])
    assert [position for position, _ in good] == [1]
    assert len(bad) == 1
    assert bad[0].position == 0
    assert bad[0].field == field
    assert re.search(reason, bad[0].reason), bad[0].reason
    assert field in str(bad[0])


def test_a_missing_field_is_named() -> None:
    _, bad = read_requests([{name: value for name, value in GOOD.items() if name != "source"}])
    assert (bad[0].field, bad[0].reason) == ("source", "Field required")


def test_what_is_no_record_is_refused_too() -> None:
    records: list[Any] = [GOOD, "text", None, 3]
    good, bad = read_requests(records)
    assert len(good) == 1
    assert [refusal.position for refusal in bad] == [1, 2, 3]


@pytest.mark.parametrize("absent", ["", "0", 0, None])
def test_crabs_ways_to_have_no_checksum(absent: object) -> None:
    assert TransferRequest(**GOOD | {"adler32": absent}).adler32 is None
