"""Which setting counts, whose files a limit counts, and what may be set at all."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from asyncstageout.core.policies import (
    LIMITS,
    SETTINGS,
    Bucket,
    Limit,
    LinkPolicy,
    Policies,
    PolicyRow,
    UnknownSetting,
    WrongValue,
    allowed,
    check_settings,
    read_value,
)
from asyncstageout.core.scopes import Scope

BARI, CERN, MIT = "T2_IT_Bari", "T2_CH_CERN", "T2_US_MIT"
SITES = (BARI, CERN, MIT)


def row(settings: dict[str, Any], **scope: str) -> PolicyRow:
    names = Scope(**scope)
    return PolicyRow(names.source, names.destination, settings, names.username, names.activity)


# The table of precedence: of two rows that cover a file, the later one counts.
ORDER = [
    {},
    {"source": BARI},
    {"destination": CERN},
    {"source": BARI, "destination": CERN},
    {"activity": "Skims"},
    {"activity": "Skims", "source": BARI},
    {"activity": "Skims", "destination": CERN},
    {"activity": "Skims", "source": BARI, "destination": CERN},
    {"username": "alice"},
    {"username": "alice", "source": BARI},
    {"username": "alice", "destination": CERN},
    {"username": "alice", "source": BARI, "destination": CERN},
    {"username": "alice", "activity": "Skims"},
    {"username": "alice", "activity": "Skims", "source": BARI},
    {"username": "alice", "activity": "Skims", "destination": CERN},
    {"username": "alice", "activity": "Skims", "source": BARI, "destination": CERN},
]


def test_the_order_is_complete() -> None:
    assert [Scope(**names).rank() for names in ORDER] == list(range(16))


@pytest.mark.parametrize("place", range(1, 16))
def test_of_two_rows_the_more_specific_counts(place: int) -> None:
    less, more = row({"files_per_job": 1}, **ORDER[place - 1]), row({"files_per_job": 2}, **ORDER[place])
    for rows in ([less, more], [more, less]):
        assert Policies(rows).of(BARI, CERN, "alice", "Skims").files_per_job == 2


def test_each_setting_comes_from_its_own_row() -> None:
    policies = Policies(
        [
            row({"files_per_job": 100, "max_attempts": 5, "priority": 5}),
            row({"files_per_job": 50}, source=BARI),
            row({"files_per_job": 60, "priority": None}, destination=CERN),
            row({"max_attempts": 9}, username="alice"),
        ]
    )
    policy = policies.of(BARI, CERN, "alice")
    assert (policy.files_per_job, policy.max_attempts, policy.priority) == (60, 9, None)
    policy = policies.of(BARI, CERN)
    assert (policy.files_per_job, policy.max_attempts) == (60, 5)
    assert policies.of(MIT, BARI).files_per_job == 100
    assert Policies([]).of(BARI, CERN) == LinkPolicy()
    assert [found.scope for found in policies.rows_for(BARI, CERN, "alice")] == [
        Scope(), Scope(BARI), Scope(None, CERN), Scope(None, None, "alice"),
    ]  # fmt: skip


def test_a_file_of_nobody_in_particular_meets_no_users_row() -> None:
    policies = Policies([row({"files_per_job": 1}, username="alice"), row({"max_attempts": 1}, activity="x")])
    assert policies.of(BARI, CERN) == LinkPolicy()


@pytest.mark.parametrize(
    ("rows", "limit"),
    [
        ([], Limit(20_000, None, Bucket(BARI, CERN))),
        ([row({"max_files_in_flight": 5}, destination=CERN)], Limit(5, None, Bucket(BARI, CERN))),
        (
            [row({"max_files_in_flight": 5}), row({"max_bytes_in_flight": 7}, username="alice")],
            Limit(5, 7, Bucket(BARI, CERN, "alice")),
        ),
        (
            [row({"max_files_in_flight": 5}, activity="Skims"), row({"max_attempts": 7}, username="alice")],
            Limit(5, None, Bucket(BARI, CERN, None, "Skims")),
        ),
        (
            [row({"max_files_in_flight": 5}, source=BARI, username="alice", activity="Skims")],
            Limit(5, None, Bucket(BARI, CERN, "alice", "Skims")),
        ),
    ],
)
def test_a_limit_counts_the_files_of_what_its_row_names(rows: list[PolicyRow], limit: Limit) -> None:
    assert Policies(rows).limit_of(BARI, CERN, "alice", "Skims") == limit


def scopes() -> st.SearchStrategy[Scope]:
    site = st.sampled_from([None, *SITES])
    return st.builds(
        Scope,
        site,
        site,
        st.sampled_from([None, "alice", "bob"]),
        st.sampled_from([None, "default", "Skims"]),
    )


VALUES = st.fixed_dictionaries(
    {},
    optional={
        "files_per_job": st.integers(1, 9),
        "max_attempts": st.integers(1, 9),
        "max_files_in_flight": st.integers(0, 9),
        "max_bytes_in_flight": st.none() | st.integers(0, 9),
        "schemes": st.lists(st.sampled_from(["davs", "root", "srm"]), unique=True),
    },
)


@given(st.dictionaries(scopes(), VALUES, max_size=12), st.randoms())
def test_precedence(settings: dict[Scope, dict[str, Any]], random: Any) -> None:
    """Against the rule read aloud, for every file; and the order of the rows says nothing."""
    rows = [PolicyRow(*scope[:2], values, *scope[2:]) for scope, values in settings.items()]
    random.shuffle(rows)
    policies = Policies(rows)
    for file in product(SITES, SITES, ("", "alice", "carol"), ("default", "Skims")):
        covering = [one for one in rows if all(n in (None, f) for n, f in zip(one.scope, file, strict=True))]
        wanted = {
            name: max((one for one in covering if name in one.settings), key=lambda one: one.scope.rank())
            for name in SETTINGS
            if any(name in one.settings for one in covering)
        }
        found = policies.of(*file)
        assert found == LinkPolicy(**{name: one.settings[name] for name, one in wanted.items()})
        assert policies.of(*file) is found, "the second answer is the first"
        limiting = [wanted[name] for name in LIMITS if name in wanted]
        bucket = policies.bucket_of(*file)
        assert bucket[:2] == file[:2]
        if limiting:
            narrowest = max(limiting, key=lambda one: one.scope.rank())
            assert bucket[2:] == (narrowest.username, narrowest.activity)
        else:
            assert bucket[2:] == (None, None)


GOOD: dict[str, list[Any]] = {
    "files_per_job": [1, 2000],
    "max_files_in_flight": [0, 1_000_000],
    "max_bytes_in_flight": [None, 0, 10**15],
    "max_attempts": [1, 100],
    "retry_scale": [0.1, 1, 100],
    "verify_checksum": ["both", "source", "target", "none"],
    "overwrite": [True, False],
    "overwrite_wrong": [True, False],
    "fts_retry": [-1, 10],
    "retry_delay_s": [None, 0, 86_400],
    "timeout_s": [None, 1, 604_800],
    "max_time_in_queue_h": [1, 720],
    "priority": [None, 1, 5],
    "fts_activity": [None, "Analysis Input"],
    "reuse": [True, False],
    "scitag": [None, 65, 65_535],
    "credential": ["service", "user"],
    "schemes": [[], ["davs"], ["root", "davs", "srm"]],
    "fts_servers": [[], ["fts3_cern", "fts3_ral"]],
    "breaker_attempts": [0, 1000],
    "breaker_failed_share": [0.01, 1],
    "clean": [True, False],
    "clean_waits_for_publication": [True, False],
    "clean_failed_after_h": [0, 8760],
    "clean_killed_after_h": [0, 8760],
    "deletes_per_s": [1, 10_000],
}
BAD: dict[str, list[Any]] = {
    "files_per_job": [0, 2001, "200", 1.5, True, None],
    "max_files_in_flight": [-1, 1_000_001, None],
    "max_bytes_in_flight": [-1, "1 TB"],
    "max_attempts": [0, 101],
    "retry_scale": [0, -1, 101, float("nan"), "2"],
    "verify_checksum": ["target ", None, True],
    "overwrite": [1, "yes", None],
    "overwrite_wrong": ["true"],
    "fts_retry": [-2, 11],
    "retry_delay_s": [-1, 86_401],
    "timeout_s": [0, 604_801],
    "max_time_in_queue_h": [0, 721],
    "priority": [0, 6],
    "fts_activity": ["", "a;b", 3],
    "reuse": ["Y"],
    "scitag": [64, 65_536],
    "credential": ["mine", None],
    "schemes": ["davs", ["gopher"], [1], None],
    "fts_servers": ["fts3_cern", [""], [1], None],
    "breaker_attempts": [-1, None],
    "breaker_failed_share": [0, 1.1],
    "clean": ["no", None],
    "clean_waits_for_publication": [0],
    "clean_failed_after_h": [-1, 8761, None],
    "clean_killed_after_h": [-1, 8761],
    "deletes_per_s": [0, 10_001, 0.5, None],
}


def test_every_setting_is_tried() -> None:
    assert set(GOOD) == set(BAD) == SETTINGS


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_only_what_is_allowed_can_be_set(name: str) -> None:
    for value in GOOD[name]:
        check_settings({name: value})
    for value in BAD[name]:
        with pytest.raises(WrongValue) as caught:
            check_settings({"max_attempts": 3} | {name: value})
        assert str(caught.value) == f"{name} cannot be {value!r}: it must be {allowed(name)}"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_attempts", "5", 5),
        ("max_bytes_in_flight", "2T", 2 * 10**12),
        ("max_bytes_in_flight", "1.5G", 15 * 10**8),
        ("max_bytes_in_flight", "none", None),
        ("retry_scale", "0.5", 0.5),
        ("retry_scale", "2", 2),
        ("overwrite", "false", False),
        ("verify_checksum", "none", "none"),
        ("fts_activity", "none", None),
        ("fts_activity", "Analysis Input", "Analysis Input"),
        ("schemes", "davs, root", ["davs", "root"]),
        ("schemes", "", []),
        ("fts_servers", "fts3_cern", ["fts3_cern"]),
    ],
)
def test_a_value_is_read_as_its_setting_needs_it(name: str, text: str, value: object) -> None:
    found = read_value(name, text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("max_attempts", "many"),
        ("max_attempts", "1.5"),
        ("max_attempts", "inf"),
        ("overwrite", "1"),
        ("priority", ""),
    ],
)
def test_a_value_that_cannot_be_is_told_as_it_was_written(name: str, text: str) -> None:
    with pytest.raises(WrongValue) as caught:
        read_value(name, text)
    assert caught.value.value == text


def test_what_is_allowed_in_words() -> None:
    assert allowed("max_attempts") == "a whole number from 1 to 100"
    assert allowed("max_bytes_in_flight") == "a whole number from 0, or none"
    assert allowed("retry_scale") == "a number above 0 to 100"
    assert allowed("verify_checksum") == "one of both, source, target, none"
    assert allowed("schemes") == "a list, each one of davs, root, srm"
    assert allowed("overwrite") == "true or false"


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(UnknownSetting, match=r"no such setting: pace, speed; there are breaker_attempts, "):
        check_settings({"speed": 1, "pace": 2, "max_attempts": 3})


def test_what_a_newer_version_stored_stops_nobody() -> None:
    assert Policies([row({"of_tomorrow": 1, "max_attempts": 4})]).of(BARI, CERN).max_attempts == 4


def test_nothing_wrong_is_read_silently() -> None:
    with pytest.raises(ValidationError):
        Policies([row({"max_attempts": "many"})]).of(BARI, CERN)


def test_a_scope_in_words() -> None:
    assert str(Scope()) == "everything"
    assert str(Scope(BARI)) == "T2_IT_Bari → anywhere"
    assert str(Scope(None, CERN, "alice", "Skims")) == "anywhere → T2_CH_CERN, user alice, activity Skims"
