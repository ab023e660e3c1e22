"""The cost of a file stays what it is: a minute of the bench, for every change.

CPU time, divided by that of a yardstick on the same machine at the same time, held against ``baseline.json``. A new one is
written by ``python -m bench.baseline``, from ``tests``, when a file is meant to cost more or less.
"""

from __future__ import annotations

import json

import pytest

from bench.baseline import BASELINE, in_yards

MOST = 2.0
"""Times the recorded cost: what noise does not reach, and what a change of the way of doing things does."""


@pytest.mark.timeout(300)
def test_a_file_costs_no_more_than_twice_what_it_did() -> None:
    recorded = json.loads(BASELINE.read_text(encoding="utf-8"))["yards_per_1000_files"]
    found = in_yards()
    assert found.keys() == recorded.keys()
    if too_much(found, recorded):
        # Others on the machine can only add to a cost: the smaller of two is nearer to it.
        again = in_yards()
        found = {who: min(yards, again[who]) for who, yards in found.items()}
    assert too_much(found, recorded) == {}, recorded


def too_much(found: dict[str, float], recorded: dict[str, float]) -> dict[str, float]:
    return {who: yards for who, yards in found.items() if yards > MOST * recorded[who]}
