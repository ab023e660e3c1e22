"""Quantiles of counted waits are as near to the true ones as is promised."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncstageout.core.delays import LEAST_S, RELATIVE_ERROR, bucket, quantile_s, value_s

WAITS = st.lists(st.floats(LEAST_S, 5e6), min_size=1, max_size=50)
# Rounding of a wait that is exactly at the end of a bucket.
SLACK = 1e-9


@given(WAITS, st.floats(0, 1))
def test_a_quantile_is_within_the_error_of_a_true_one(waits: list[float], share: float) -> None:
    true_s = sorted(waits)[int(share * (len(waits) - 1))]
    found_s = quantile_s(Counter(map(bucket, waits)), share)
    assert found_s is not None
    assert abs(found_s - true_s) <= (RELATIVE_ERROR + SLACK) * true_s


@given(WAITS, WAITS, st.sampled_from([0.5, 0.95, 0.99]))
def test_what_is_added_up_is_as_if_counted_at_once(
    first: list[float], second: list[float], share: float
) -> None:
    added = Counter(map(bucket, first)) + Counter(map(bucket, second))
    assert quantile_s(added, share) == quantile_s(Counter(map(bucket, first + second)), share)


@pytest.mark.parametrize("waited_s", [0.0, -1.0, 0.01, LEAST_S])
def test_what_is_too_short_to_tell_counts_as_the_least(waited_s: float) -> None:
    assert bucket(waited_s) == bucket(LEAST_S)
    assert value_s(bucket(waited_s)) == pytest.approx(LEAST_S, rel=RELATIVE_ERROR)


def test_without_files_there_is_no_quantile() -> None:
    assert quantile_s({}, 0.5) is None
