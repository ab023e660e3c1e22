"""``aso simulate``: a day on paper, told in words and in JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from click.testing import Result

from asyncstageout.cli import Advice
from asyncstageout.cli import simulate as command
from asyncstageout.simulation.day import Day
from asyncstageout.simulation.measures import Outcome
from asyncstageout.simulation.report import told

Aso: TypeAlias = Callable[..., Result]


@pytest.fixture
def short_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day of two minutes."""
    whole = Day.run

    def run(day: Day, seconds: float = 120.0, sample_s: float = 60.0) -> Outcome:
        return whole(day, seconds, sample_s)

    monkeypatch.setattr(Day, "run", run)


@pytest.fixture
def said(aso: Aso) -> Callable[..., str]:
    """Run ``aso simulate``, and return what it prints."""

    def run(*words: str) -> str:
        result = aso("simulate", *words)
        if isinstance(result.exception, Advice):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


def test_scenarios_are_listed(said: Callable[..., str]) -> None:
    text = said("--list")
    assert "internet" in text
    assert "1 G" in text
    assert json.loads(said("--list", "--json"))["cms2015"]["files_per_day"] == 400_000


@pytest.mark.usefixtures("short_day")
def test_a_day_is_told_in_words_and_in_json(said: Callable[..., str]) -> None:
    assert "files arrived" in said("--scenario", "cms2015")
    one, ten = (
        json.loads(said("--scenario", "cms2015", "--load-factor", factor, "--json"))["cms2015"]
        for factor in ("1", "10")
    )
    assert ten["arrived"] == pytest.approx(10 * one["arrived"])
    assert one["accepted_after"]["p50"] <= one["accepted_after"]["p99"]
    assert set(one["samples"][0]["use"]) >= {"Postgres", "step workers"}


def test_what_is_wrong_is_said(said: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(Advice, match="no scenario 'moon'"):
        said("--scenario", "moon")
    broken = tmp_path / "costs.json"
    broken.write_text("{", encoding="utf-8")
    with pytest.raises(Advice, match="no JSON"):
        said("--calibration", str(broken))
    broken.write_text("{}", encoding="utf-8")
    with pytest.raises(Advice, match="numbers are missing"):
        said("--calibration", str(broken))
    assert command.read_calibration(None).steps["submit"].python_job_s > 0


def test_a_day_without_files_is_told_too() -> None:
    nothing = Day(
        command._scenario("cms2015", 1e-6),
        command.SCENARIOS["cms2015"].deployment,
        command.read_calibration(None),
    )
    assert "0 files arrived" in told(nothing.run(60, 60))
