"""The calibration that comes with this version."""

from __future__ import annotations

import pytest

from asyncstageout.cli.simulate import read_calibration
from asyncstageout.simulation.calibration import Calibration


@pytest.fixture(scope="session")
def costs() -> Calibration:
    return read_calibration(None)
