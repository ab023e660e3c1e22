"""Whose area is whose, and where a temporary file belongs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncstageout.core.lfn_policy import (
    AREAS,
    can_be_published,
    check_destination,
    check_source,
    final_lfn,
)
from asyncstageout.core.naming import BadName
from asyncstageout.core.requests import TransferRequest, read_requests

# (LFN, alice may have it as a source, as a destination)
TABLE = [
    ("/store/temp/user/alice.0a1b2c/mc/out_1.root", True, False),
    ("/store/temp/user/alice.0a1b2c/mc/log/cmsRun_1.log.tar.gz", True, False),
    ("/store/temp/user/alice/mc/out_1.root", True, False),
    ("/store/temp/user/bob.0a1b2c/mc/out_1.root", False, False),
    ("/store/temp/user/alice.smith/mc/out_1.root", False, False),
    ("/store/temp/user/alicex.0a1b/mc/out_1.root", False, False),
    ("/store/temp/user/alice.0a1b2c", False, False),
    ("/store/temp/group/higgs/out_1.root", True, False),
    ("/store/temp/x/alice/out_1.root", False, False),
    ("/store/user/alice/mc/out_1.root", True, True),
    ("/store/user/alice/mc/log/cmsRun_1.log.tar.gz", True, True),
    ("/store/user/alice.0a1b/mc/out_1.root", False, False),
    ("/store/user/bob/mc/out_1.root", False, False),
    ("/store/user/bob/alice/out_1.root", False, False),
    ("/store/user/alice", False, False),
    ("/store/user/rucio/alice/mc/out_1.root", True, True),
    ("/store/user/rucio/bob/mc/out_1.root", False, False),
    ("/store/user/rucio/alice", False, False),
    ("/store/group/higgs/alice/out_1.root", True, True),
    ("/store/group/rucio/higgs/out_1.root", True, True),
    ("/store/group/higgs", False, False),
    ("/store/local/cache/out_1.root", True, True),
    ("/store/test/rucio/user/alice/out_1.root", True, True),
    ("/store/test/rucio/user/bob/out_1.root", False, False),
    ("/store/test/rucio/int/user/alice/out_1.root", True, True),
    ("/store/test/rucio/int/user/bob/out_1.root", False, False),
    ("/store/unmerged/Run2026A/out_1.root", False, False),
    ("/store/mc/Run3/out_1.root", False, False),
    ("/store/data/Run2026A/out_1.root", False, False),
    ("/store/backfill/1/out_1.root", False, False),
]


@pytest.mark.parametrize(("lfn", "as_source", "as_destination"), TABLE)
def test_whose_area_it_is(lfn: str, as_source: bool, as_destination: bool) -> None:
    for check, may in ((check_source, as_source), (check_destination, as_destination)):
        if may:
            assert check(lfn, "alice") == lfn
        else:
            with pytest.raises(
                BadName, match=r"/store/user/alice/, /store/user/rucio/alice/ or /store/group/"
            ):
                check(lfn, "alice")


def test_every_area_is_in_the_table() -> None:
    for area in AREAS:
        assert any(
            lfn.startswith(area.prefix) and (source or destination) for lfn, source, destination in TABLE
        )


@pytest.mark.parametrize(
    ("lfn", "says"),
    [
        ("/store/user/bob/x/f", "/store/user/bob/x/f is bob's; alice writes to /store/user/alice/, "),
        (
            "/store/temp/user/alice.0a/f",
            "/store/temp/user/alice.0a/f is alice's temporary area; alice writes to ",
        ),
        ("/store/temp/group/higgs/f", "/store/temp/group/higgs/f is temporary; "),
        ("/store/mc/x/f", "/store/mc/x/f is in no area of users, groups or sites; "),
    ],
)
def test_the_sentence_says_whose_it_is(lfn: str, says: str) -> None:
    with pytest.raises(BadName) as caught:
        check_destination(lfn, "alice")
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("temporary", "final"),
    [
        ("/store/temp/user/alice.0a1b/mc/0000/out_1.root", "/store/user/alice/mc/0000/out_1.root"),
        ("/store/temp/user/alice/out_1.root", "/store/user/alice/out_1.root"),
        ("/store/temp/user/alice.0a1b/mc/store/temp/x.root", "/store/user/alice/mc/store/temp/x.root"),
        ("/store/temp/group/higgs/mc/out_1.root", "/store/group/higgs/mc/out_1.root"),
    ],
)
def test_where_a_temporary_file_belongs(temporary: str, final: str) -> None:
    assert final_lfn(temporary, "alice") == final
    assert TransferRequest(**request(source_lfn=temporary)).destination_lfn == final


words = st.from_regex(r"[a-z][a-z0-9]{0,7}", fullmatch=True)


@given(words, st.text("0123456789abcdef", min_size=40, max_size=40), st.lists(words, min_size=1, max_size=5))
def test_a_final_name_is_always_the_owners(username: str, dn_hash: str, tail: list[str]) -> None:
    temporary = f"/store/temp/user/{username}.{dn_hash}/{'/'.join(tail)}"
    assert check_source(temporary, username) == temporary
    final = final_lfn(temporary, username)
    assert check_destination(final, username) == final
    assert final.endswith("/" + "/".join(tail))


@given(words, words, words)
def test_nobody_writes_to_another_users_area(owner: str, other: str, file: str) -> None:
    if owner != other:
        for area in AREAS:
            if area.is_users and not (area.prefix == "/store/user/" and owner == "rucio"):
                for check in (check_source, check_destination):
                    with pytest.raises(BadName):
                        check(f"{area.prefix}{owner}/{file}", other)


def request(**changes: Any) -> dict[str, Any]:
    return {
        "task": "261122_101010_alice_mc",
        "username": "alice",
        "source": "T2_IT_Bari",
        "destination": "T2_CH_CERN",
        "source_lfn": "/store/temp/user/alice.0a1b/mc/out_1.root",
        "size_bytes": 12,
    } | changes


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        (
            {"source_lfn": "/store/temp/user/bob.0a1b/x/f"},
            "source_lfn",
            "is bob's temporary area; files of alice",
        ),
        ({"destination_lfn": "/store/user/bob/f"}, "destination_lfn", "is bob's; alice writes to"),
        ({"destination_lfn": "/store/mc/f"}, "destination_lfn", "in no area"),
        (
            {"source_lfn": "/store/user/alice/f"},
            "destination_lfn",
            "only follows from a source below /store/temp/",
        ),
        ({"username": "service"}, "username", "this service itself"),
        ({"username": "a b"}, "username", "pattern"),
        (
            {"destination_lfn": "/store/local/x/f", "publish": True},
            "publish",
            "cannot be published: it is in a site's own area",
        ),
        ({"destination_lfn": 3}, "destination_lfn", "string"),
        ({"source_lfn": None}, "source_lfn", "string"),
    ],
)
def test_a_request_for_a_wrong_area_is_refused_by_its_field(
    change: dict[str, Any], field: str, says: str
) -> None:
    good, bad = read_requests([request(**change), request()])
    assert [position for position, _ in good] == [1]
    assert bad[0].field == field
    assert says in bad[0].reason


def test_identity() -> None:
    assert str(TransferRequest(**request()).identity) == "alice"
    full = request(vo="cms", vo_group="higgs", vo_role="production")
    assert str(TransferRequest(**full).identity) == "alice@cms+higgs+production"


def test_what_can_be_published() -> None:
    assert can_be_published("/store/user/alice/f")
    assert not can_be_published("/store/local/x/f")
    assert not can_be_published("/store/mc/x/f")
