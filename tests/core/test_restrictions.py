"""What stops, what refuses, from when until when, and how it is told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncstageout.core.restrictions import Mode, Restriction, Restrictions

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
BARI, CERN, MIT = "T2_IT_Bari", "T2_CH_CERN", "T2_US_MIT"


def restriction(mode: Mode = Mode.PAUSE, **changes: Any) -> Restriction:
    return Restriction(
        **{
            "restriction_id": 1, "mode": mode, "site": None, "source": None, "destination": None,
            "username": None, "activity": None, "reason": "disk full", "author": "ops", "starts_at": NOW - HOUR,
        } | changes
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "stops", "refuses"),
    [(Mode.PAUSE, True, False), (Mode.DRAIN, False, True), (Mode.BAN, True, True)],
)
def test_what_each_mode_does(mode: Mode, stops: bool, refuses: bool) -> None:
    restrictions = Restrictions([restriction(mode)], NOW)
    assert (restrictions.stops(BARI, CERN) is not None) is stops
    assert (restrictions.refuses(BARI, CERN) is not None) is refuses


@pytest.mark.parametrize(
    ("names", "covered"),
    [
        (
            {},
            {
                "Bari-CERN alice",
                "CERN-Bari alice",
                "MIT-CERN alice",
                "Bari-CERN bob",
                "Bari-CERN alice Skims",
            },
        ),
        ({"site": BARI}, {"Bari-CERN alice", "CERN-Bari alice", "Bari-CERN bob", "Bari-CERN alice Skims"}),
        ({"source": BARI}, {"Bari-CERN alice", "Bari-CERN bob", "Bari-CERN alice Skims"}),
        ({"destination": BARI}, {"CERN-Bari alice"}),
        ({"source": MIT, "destination": CERN}, {"MIT-CERN alice"}),
        ({"username": "bob"}, {"Bari-CERN bob"}),
        ({"activity": "Skims"}, {"Bari-CERN alice Skims"}),
        ({"site": BARI, "username": "bob"}, {"Bari-CERN bob"}),
    ],
)
def test_what_it_covers(names: dict[str, str], covered: set[str]) -> None:
    files = {
        "Bari-CERN alice": (BARI, CERN, "alice", "default"),
        "CERN-Bari alice": (CERN, BARI, "alice", "default"),
        "MIT-CERN alice": (MIT, CERN, "alice", "default"),
        "Bari-CERN bob": (BARI, CERN, "bob", "default"),
        "Bari-CERN alice Skims": (BARI, CERN, "alice", "Skims"),
    }
    one = restriction(**names)
    restrictions = Restrictions([one], NOW)
    assert {name for name, file in files.items() if restrictions.stops(*file)} == covered
    assert {name for name, file in files.items() if one.covers(*file)} == covered


def test_without_a_user_only_what_stops_every_user() -> None:
    restrictions = Restrictions([restriction(username="alice"), restriction(activity="Skims")], NOW)
    assert restrictions.stops(BARI, CERN) is None
    assert restrictions.stops(BARI, CERN, "alice") is not None
    assert restrictions.stops(BARI, CERN, None, "Skims") is not None


def test_the_one_that_ends_last_is_told() -> None:
    first = restriction(ends_at=NOW + HOUR, source=BARI, destination=CERN)
    second = restriction(ends_at=NOW + 2 * HOUR, site=BARI, is_downtime=True)
    third = restriction(Mode.BAN, username="alice")
    assert Restrictions([first, second], NOW).stops(BARI, CERN, "alice") is second
    assert Restrictions([third, second, first], NOW).stops(BARI, CERN, "alice") is third
    assert Restrictions([first, second, third], NOW).ends_next() == first.ends_at
    same = restriction(ends_at=NOW + 3 * HOUR, source=BARI, destination=CERN)
    assert Restrictions([first, same], NOW).stops(BARI, CERN) is same


def test_the_end_of_a_drain_starts_nothing() -> None:
    assert Restrictions([restriction(Mode.DRAIN, ends_at=NOW + HOUR)], NOW).ends_next() is None


def test_sentences() -> None:
    end = NOW + 2 * HOUR
    assert restriction(ends_at=end).sentence() == "paused by ops until 2026-11-23 14:00 UTC: disk full"
    assert restriction(Mode.BAN).sentence() == "banned by ops: disk full"
    assert restriction(Mode.DRAIN).sentence() == "drained by ops: disk full"
    assert restriction(site=BARI, ends_at=end, is_downtime=True).sentence() == (
        "downtime of site T2_IT_Bari until 2026-11-23 14:00 UTC: disk full"
    )
    assert restriction(site=BARI, username="alice").what() == "site T2_IT_Bari, user alice"
    assert restriction(source=BARI).what() == "T2_IT_Bari → anywhere"


moments = st.integers(-5, 5).map(lambda hours: NOW + hours * HOUR)


@st.composite
def restrictions_of_all_times(draw: st.DrawFn) -> Restriction:
    starts_at = draw(moments)
    lasts_h = draw(st.none() | st.integers(1, 6))
    return restriction(
        draw(st.sampled_from(Mode)),
        restriction_id=draw(st.integers(1, 999)),
        source=draw(st.sampled_from([None, BARI])),
        destination=draw(st.sampled_from([None, CERN])),
        username=draw(st.sampled_from([None, "alice"])),
        starts_at=starts_at,
        ends_at=None if lasts_h is None else starts_at + lasts_h * HOUR,
        lifted_at=draw(st.none() | st.just(starts_at)),
    )


@given(st.lists(restrictions_of_all_times(), max_size=8), moments)
def test_in_force_from_its_start_until_before_its_end(rows: list[Restriction], now: datetime) -> None:
    restrictions = Restrictions(rows, now)
    for source, destination, user in product((BARI, MIT), (CERN, MIT), ("alice", "bob")):
        covering = [
            one
            for one in rows
            if one.lifted_at is None
            and one.starts_at <= now
            and (one.ends_at is None or now < one.ends_at)
            and one.covers(source, destination, user, "default")
        ]
        for asked, modes in (
            (restrictions.stops, {Mode.PAUSE, Mode.BAN}),
            (restrictions.refuses, {Mode.DRAIN, Mode.BAN}),
        ):
            found = asked(source, destination, user)
            counting = [one for one in covering if one.mode in modes]
            assert (found is None) == (not counting)
            if found:
                assert found in counting
                assert found.is_in_force(now)
                assert not found.is_over(now)
                ends = [one.ends_at for one in counting]
                assert found.ends_at is None if None in ends else found.ends_at == max(e for e in ends if e)


@given(st.lists(restrictions_of_all_times(), max_size=8), moments)
def test_nothing_that_stops_ends_before_the_next_end(rows: list[Restriction], now: datetime) -> None:
    """Whoever looks again at ``ends_next`` misses no file that could have gone earlier."""
    at = Restrictions(rows, now).ends_next()
    before = now + HOUR
    while before < (at or now + 12 * HOUR):
        was = {one.restriction_id for one in rows if one.is_in_force(now) and one.mode is not Mode.DRAIN}
        still = {one.restriction_id for one in rows if one.is_in_force(before)}
        assert was <= still
        before += HOUR
