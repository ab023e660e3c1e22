"""Whatever a site says of its names, nothing outside its temporary area gets a URL for deletion."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from asyncstageout.core.lfn_policy import AREAS, below_temporary, owner_of_folder
from asyncstageout.core.naming import BadName
from asyncstageout.core.storages.model import Protocol, Rule, Storage, Unresolvable, prefix_storage
from asyncstageout.core.storages.rucio import read_rse
from asyncstageout.core.storages.storage_json import turned_round
from asyncstageout.core.temporary_names import NotTemporary, TemporaryNames

LFN = "/store/temp/user/alice.0a1b/mc/out_1.root"
WEB = frozenset({"davs", "https"})
USER_AREA, GROUP_AREA = (area for area in AREAS if area.is_temporary)


def by_rules(*rules: tuple[str, str], back: tuple[tuple[str, str], ...] | None = None) -> Storage:
    """A TFC of one protocol; ``back``: its own rules for the way back, else our turning round of them."""
    to_pfn = tuple(Rule(match=match, result=result) for match, result in rules)
    if back is None:
        to_lfn, kind = tuple(turned_round(to_pfn)), "storage.json"
    else:
        to_lfn, kind = tuple(Rule(match=match, result=result) for match, result in back), "tfc"
    protocol = Protocol(name="WebDAV", to_pfn=to_pfn, to_lfn=to_lfn, read=1, write=1)
    return Storage(site="T2_XX_Y", kind=kind, protocols=(protocol,))


def url(storage: Storage, lfn: str = LFN, username: str = "alice", schemes: frozenset[str] = WEB) -> str:
    return TemporaryNames(storage, schemes).url(lfn, username=username)


def reason(storage: Storage, lfn: str = LFN, username: str = "alice") -> str:
    with pytest.raises(NotTemporary) as caught:
        url(storage, lfn, username)
    return caught.value.reason


# --- what is deleted ---


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        (prefix_storage("T2_XX_Y", "davs://se.test:8443/cms"), f"davs://se.test:8443/cms{LFN}"),
        (by_rules(("/+store/(.*)", "davs://se.test/cms/store/$1")), f"davs://se.test/cms{LFN}"),
        # Temporary files are elsewhere, as at many sites.
        (
            by_rules(("/+store/temp/user/(.*)", "davs://se.test/scratch/$1"), ("/+store/(.*)", "davs://se.test/cms/$1")),
            "davs://se.test/scratch/alice.0a1b/mc/out_1.root",
        ),
        # A TFC without rules back.
        (by_rules(("/+store/(.*)", "davs://se.test/cms/$1"), back=()), f"davs://se.test/cms{LFN.removeprefix('/store')}"),
    ],
)  # fmt: skip
def test_where_a_copy_is(storage: Storage, expected: str) -> None:
    assert url(storage) == expected


@pytest.mark.parametrize("algorithm", ["hash", "identity"])
def test_names_of_rucio_hold_the_whole_lfn(algorithm: str) -> None:
    """Their folders hang on a hash, which leads nowhere; behind it stands the LFN, letter by letter."""
    protocol = {
        "scheme": "davs",
        "hostname": "se.test",
        "prefix": "/rucio",
        "domains": {"wan": {"third_party_copy_write": 1}},
    }
    storage = read_rse({"rse": "T2_XX_Y", "lfn2pfn_algorithm": algorithm, "protocols": [protocol]})
    assert url(storage).endswith(LFN)
    with pytest.raises(NotTemporary, match="one directory"):
        TemporaryNames(storage, WEB).root(USER_AREA)


def test_the_way_that_can_be_written_best_is_taken() -> None:
    ways = (
        Protocol(name="local", prefix="davs://local.test", read=1),
        Protocol(name="srm", prefix="srm://srm.test", read=1, write=1),
        Protocol(name="far", prefix="davs://far.test", read=1, write=2),
        Protocol(name="near", prefix="https://near.test", read=1, write=1),
    )
    storage = Storage(site="T2_XX_Y", kind="storage.json", protocols=ways)
    assert url(storage) == f"https://near.test{LFN}"
    assert "srm" in reason(Storage(site="T2_XX_Y", kind="storage.json", protocols=ways[:2]))


def test_the_roots_of_the_temporary_areas() -> None:
    names = TemporaryNames(prefix_storage("T2_XX_Y", "davs://se.test/cms"), WEB)
    assert names.root(USER_AREA) == "davs://se.test/cms/store/temp/user/"
    assert names.root(GROUP_AREA) == "davs://se.test/cms/store/temp/group/"


# --- what is not ---


@pytest.mark.parametrize(
    "lfn",
    [
        "/store/user/alice/mc/out_1.root",
        "/store/data/run/out_1.root",
        "/store/temp/out_1.root",
        "/store/temp/user/alice.0a1b",
        "/store/temp/user/alice.0a1b/",
        "/store/temp/user/bob.0a1b/mc/out_1.root",
        "/store/temp/user/alicex/mc/out_1.root",
        "/store/temp/users/alice/mc/out_1.root",
        "/store/temporary/user/alice/mc/out_1.root",
        "/store/temp/user/alice.0a1b/../../../user/alice/out_1.root",
        "/store/temp/user/alice.0a1b/%2e%2e/out_1.root",
        "/store/temp/user/alice.0a1b/mc//out_1.root",
        "/store/temp/user/alice.0a1b/./out_1.root",
        "/store/temp/user/alice.0a1b/a b",
        "/store/temp/user//out_1.root",
        "store/temp/user/alice/out_1.root",
        "",
        "/",
        LFN + "\n",
        "/store/temp/user/alice.0a1b/" + "x" * 500,
    ],
)
def test_only_files_of_ones_own_temporary_area(lfn: str) -> None:
    reason(prefix_storage("T2_XX_Y", "davs://se.test/cms"), lfn)


@pytest.mark.parametrize(
    ("storage", "why"),
    [
        # Two areas in one place, in every way that comes to mind.
        (by_rules(("/+store/(temp/)?user/(.*)", "davs://se.test/user/$2")), "not lie in a directory of temp"),
        (by_rules(("/+store/(temp/)?user/(.*)", "davs://se.test/user/$2"), back=(("/user/(.*)", "/store/temp/user/$1"),)), "not lie in"),
        (by_rules(("/+store/temp/(.*)", "davs://se.test/$1"), ("/+store/(.*)", "davs://se.test/$1")), "not lie in"),
        (by_rules(("/+store/temp/user/(.*)", "davs://se.test/store/user/tmp/$1"), ("/+(.*)", "davs://se.test/$1")), "not lie in"),
        (by_rules(("/+store/(?:temp/user|data)/(.*)", "davs://se.test/$1")), "not lie in"),
        (by_rules(("/+store/temp/(.*)", "davs://se.test/$1"), ("/+store/user/(.*)", "davs://se.test/user/x/$1")), "not lie in"),
        # Names that lose, or change, a part of the LFN.
        (by_rules(("/+store/.*/([^/]*)", "davs://se.test/temp/$1")), "not lie in"),
        (by_rules(("/+store/temp/user/([^/]*)/(.*)", "davs://se.test/temp/$2/$1")), "not lie in"),
        (by_rules(("/+store/.*", "davs://se.test/one")), "not lie in"),
        (by_rules(("/+store/temp/user/alice.*?/(.*)", "davs://se.test/hers/$1"), ("/+(.*)", "davs://se.test/$1")), "not lie in"),
        # The way back leads elsewhere.
        (by_rules(("/+store/(.*)", "davs://se.test/$1"), back=(("davs://[^/]+/(.*)", "/store/user/$1"),)), "leads back to /store/user/"),
        # Not a plain URL of a host.
        (prefix_storage("T2_XX_Y", "davs://se.test/x?SFN="), "more than host and path"),
        (prefix_storage("T2_XX_Y", "davs://me@se.test/x"), "more than host and path"),
        (prefix_storage("T2_XX_Y", "davs://se.test/x/../y"), "leads out of one"),
        (prefix_storage("T2_XX_Y", "davs://se.test/x%2e%2e/y"), "another path"),
        (prefix_storage("T2_XX_Y", "srm://se.test/x"), "nothing of it can delete"),
        (by_rules(("/+store/user/(.*)", "davs://se.test/$1")), "nothing of it can delete"),
    ],
)  # fmt: skip
def test_descriptions_under_which_nothing_is_deleted(storage: Storage, why: str) -> None:
    assert why in reason(storage)


# --- whatever the description and the LFN ---

MATCHES = (
    "/+store/(.*)", "/+store/temp/(.*)", "/+store/temp/user/(.*)", "/+store/temp/user/([^/]+)/(.*)", "/+(.*)", "(.*)",
    "/+store/(temp/)?user/(.*)", "/+store/(?:temp/)?(.*)", "/+store/[^/]*/(.*)", "/+store/user/(.*)", "/+store/group/(.*)",
    "/+store/(.*)/(.*)", "/+store/(temp|user|group)/(.*)", ".*/([^/]*)", "/+store/.*/(user/.*)", "/+store/data/(.*)",
    "/+store/temp/user/(alice.*)", "/+store/(?:user|temp/user)/([^/.]*)[^/]*/(.*)",
)  # fmt: skip
PLACES = (
    "davs://h", "davs://h/cms", "davs://h/cms/store", "davs://h/cms/store/user", "davs://h/cms/temp/user",
    "davs://h/cms/store/temp/user", "davs://h/cms/store/temp", "davs://h/user", "davs://h/x/..", "davs://h/f?p=", "srm://h",
)  # fmt: skip
TAILS = ("/$1", "/$2", "/$1/$2", "/$2/$1", "/$1$2", "", "/user/$1", "/temp/user/$1", "/alice.0a1b/$1", "//$1")
NAMES = st.sampled_from(["alice", "alice.0a1b", "bob", "user", "temp", "mc", "x", "out_1.root"])


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    with suppress(ValidationError):
        return Rule(
            match=draw(st.sampled_from(MATCHES)),
            result=draw(st.sampled_from(PLACES)) + draw(st.sampled_from(TAILS)),
        )
    return draw(st.nothing())


@st.composite
def storages(draw: st.DrawFn) -> Storage:
    if draw(st.integers(0, 5)) == 0:
        return prefix_storage("T2_XX_Y", draw(st.sampled_from(PLACES)))
    to_pfn = tuple(draw(st.lists(rules(), min_size=1, max_size=4)))
    own_back = draw(st.booleans())
    back = tuple(draw(st.lists(rules_back(), max_size=2))) if own_back else tuple(turned_round(to_pfn))
    protocol = Protocol(name="WebDAV", to_pfn=to_pfn, to_lfn=back, write=1)
    return Storage(site="T2_XX_Y", kind="tfc" if own_back else "storage.json", protocols=(protocol,))


@st.composite
def rules_back(draw: st.DrawFn) -> Rule:
    place = draw(
        st.sampled_from(["davs://h/+(.*)", "davs://h/+cms/+(.*)", "davs://h/+cms/store/(.*)", ".*/(user/.*)"])
    )
    return Rule(
        match=place,
        result=draw(st.sampled_from(["/store/$1", "/$1", "/store/temp/$1", "/store/temp/user/$1"])),
    )


@st.composite
def lfns(draw: st.DrawFn) -> str:
    prefixes = ["/store/temp/user/", "/store/temp/user/", "/store/temp/group/", "/store/user/", "/store/"]
    return draw(st.sampled_from(prefixes)) + "/".join(draw(st.lists(NAMES, min_size=2, max_size=4)))


OUTSIDE = [area.prefix for area in AREAS if not area.is_temporary] + [
    "/store/data/", "/store/mc/", "/store/unmerged/", "/store/results/"
]  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(storage=storages(), lfn=lfns(), others=st.lists(lfns(), max_size=4))
def test_nothing_outside_the_temporary_area_ever_gets_a_url(
    storage: Storage, lfn: str, others: list[str]
) -> None:
    username = owner_of_folder(lfn.split("/")[4]) if lfn.count("/") > 4 else "alice"
    try:
        found = url(storage, lfn, username)
    except NotTemporary:
        return
    below = below_temporary(lfn, username)
    assert found.endswith(f"/{below}")
    assert found.startswith("davs://h/")
    assert ".." not in found
    # Every other file that could be meant, and those that look like it, live elsewhere.
    tail = below.partition("/")[2]
    suspects = {
        prefix + name for prefix in OUTSIDE for name in (below, tail, f"{username}/{tail}", f"user/{below}")
    }
    suspects |= {
        lfn.replace("/temp", ""),
        *(other for other in others if not other.startswith("/store/temp/")),
    }
    for suspect in suspects:
        with suppress(Unresolvable):
            assert (
                storage.pfn("WebDAV" if storage.kind != "prefix" else "davs", suspect, username=username).url
                != found
            ), suspect


@settings(max_examples=200, deadline=None)
@given(storage=storages(), lfn=lfns(), other=lfns())
def test_two_files_never_get_one_url(storage: Storage, lfn: str, other: str) -> None:
    assume(lfn != other)
    with suppress(NotTemporary):
        names = TemporaryNames(storage, WEB)
        owners = [
            owner_of_folder(name.split("/")[4]) if name.count("/") > 4 else "alice" for name in (lfn, other)
        ]
        assert names.url(lfn, username=owners[0]) != names.url(other, username=owners[1])


@pytest.mark.parametrize("lfn", ["/store/user/alice/x", "/store/temp/user/bob/x", "/store/temp/user/alice"])
def test_what_is_below_the_temporary_area(lfn: str) -> None:
    assert below_temporary(LFN, "alice") == "alice.0a1b/mc/out_1.root"
    assert below_temporary("/store/temp/group/higgs/x.root", "alice") == "higgs/x.root"
    with pytest.raises(BadName):
        below_temporary(lfn, "alice")
