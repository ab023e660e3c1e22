"""The model beside delays that the real platform showed: measurements that it was not made from."""

from __future__ import annotations

import pytest

from asyncstageout.simulation.calibration import Calibration
from asyncstageout.simulation.checks import checks


def test_delays_of_bursts_are_those_that_were_measured(costs: Calibration) -> None:
    found = list(checks(costs))
    assert len(found) == 7
    for one in found:
        assert one.model_s == pytest.approx(one.measured_s, rel=0.25), one.what
