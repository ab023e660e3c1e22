"""``aso simulate``: how the service would do under another load, and where it would end."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from asyncstageout.cli import Advice, app, console
from asyncstageout.cli.options import AsJson
from asyncstageout.simulation import report
from asyncstageout.simulation.calibration import BadCalibration, Calibration
from asyncstageout.simulation.day import Day
from asyncstageout.simulation.measures import Outcome, Resource
from asyncstageout.simulation.scenarios import SCENARIOS, Scenario
from asyncstageout.simulation.studies import Study, WhatIf, study, what_ifs

HANGS_ON = "hundredfold"
"""The scenario whose assumptions the report changes: the load that this project is for."""
PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@app.command()
def simulate(
    *,
    scenario: Annotated[list[str] | None, typer.Option(help="Which (see --list); may be repeated.")] = None,
    load_factor: Annotated[float, typer.Option(min=1e-6, help="Times the scenario's files.")] = 1.0,
    report_to: Annotated[
        Path | None,
        typer.Option("--report", metavar="DIR", help="Write simulation.md and its pictures here."),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Costs, as bench.calibrate writes them.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed is the same day.")] = 1,
    list_them: Annotated[bool, typer.Option("--list", help="Say which scenarios there are.")] = False,
    as_json: AsJson = False,
) -> None:
    """Reckon a day of a load on paper: delays, backlog, what is busy. With --report also what it needs."""
    if list_them:
        _list(as_json)
        return
    costs = read_calibration(calibration)
    named = {
        name: _scenario(name, load_factor) for name in scenario or (SCENARIOS if report_to else ["cms2015"])
    }
    if report_to:
        studies: list[Study] = []
        for name, one in named.items():
            console.print(f"{name}: {one.title}")
            studies.append(study(name, one, costs, seed))
            # After each of them: what took minutes is not lost with the next one.
            _write(report_to, studies, costs, [])
        if HANGS_ON in named:
            _write(report_to, studies, costs, what_ifs(HANGS_ON, named[HANGS_ON], costs, seed))
        console.print(f"Written: {report_to / 'simulation.md'}")
        return
    days = {name: Day(one, one.deployment, costs, seed=seed).run() for name, one in named.items()}
    if as_json:
        sys.stdout.write(json.dumps({name: _facts(day) for name, day in days.items()}) + "\n")
        return
    for name, day in days.items():
        console.print(f"{name}: {named[name].title}", style="bold")
        console.print(report.told(day))
        console.print(_table(day))


def _write(folder: Path, studies: list[Study], costs: Calibration, ifs: list[WhatIf]) -> None:
    pictures = folder / report.FOLDER
    pictures.mkdir(parents=True, exist_ok=True)
    for file_name, svg in report.pictures(studies):
        (pictures / file_name).write_text(svg, encoding="utf-8")
    (folder / "simulation.md").write_text(report.markdown(studies, costs, ifs), encoding="utf-8")


def read_calibration(path: Path | None) -> Calibration:
    """Return the costs in a file, else those that came with this version.

    Raises:
        Advice: the file is none of ours.
    """
    try:
        text = (
            path.read_text(encoding="utf-8")
            if path
            else (files("asyncstageout.simulation") / "measured.json").read_text(encoding="utf-8")
        )
        return Calibration.of(json.loads(text))
    except (OSError, ValueError) as error:
        what = error if isinstance(error, BadCalibration | OSError) else f"no JSON: {error}"
        raise Advice(
            f"{path} is no calibration: {what}", "`python -m bench.calibrate` in tests/ makes one."
        ) from error


def _scenario(name: str, load_factor: float) -> Scenario:
    try:
        one = SCENARIOS[name]
    except KeyError as error:
        raise Advice(f"There is no scenario {name!r}.", f"There are: {', '.join(SCENARIOS)}.") from error
    return replace(one, files_per_day=one.files_per_day * load_factor)


def _list(as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({name: asdict(one) for name, one in SCENARIOS.items()}) + "\n")
        return
    table = Table("Scenario", "Files a day", "Sites", "What", box=None)
    for name, one in SCENARIOS.items():
        table.add_row(name, report.count(one.files_per_day), f"{one.sites:,}", one.title)
    console.print(table)


def _facts(day: Outcome) -> dict[str, Any]:
    facts = asdict(day)
    for delay in ("accepted_after", "settled_after"):
        delays = getattr(day, delay)
        facts[delay] = {name: delays.quantile_s(share) for name, share in PERCENTILES.items()}
    return facts


def _table(day: Outcome) -> Table:
    table = Table("Resource", "Average", "Busiest", box=None)
    average, busiest = day.average(), day.busiest()
    for resource in sorted(Resource, key=lambda name: -busiest[name]):
        table.add_row(resource.value, f"{average[resource]:.0%}", f"{busiest[resource]:.0%}")
    return table
