"""``make week``: a week of the service's life on a fast clock, and whether everything came to its right end.

    python -m week [--files 50000] [--seed 1] [--tick-min 60] [--deaths 32] [--keep-failed-h 168]

Exit code 1 if anything is not as it should be; the first violations are shown.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping
from datetime import timedelta
from random import Random
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.catalogue.policies import put_policy
from asyncstageout.catalogue.storages import put_sites
from asyncstageout.catalogue.subscriptions import put_subscription
from asyncstageout.core.subscriptions import read_subscription
from asyncstageout.sandbox.faults import FaultPlan
from asyncstageout.sandbox.sites.names import site_pfn
from week import report
from week.checks import Finding, Scene, examine, verdict
from week.clock import week_clock
from week.cost import Cost
from week.house import HOOK, House
from week.manifest import DAYS, START, sites, week
from week.run import Run
from week.town import town
from week.world import World

FAULTS = {"mix": {"rate": 0.06}}
"""So many files fail at least once, in production's mix; most of them arrive in the end."""
POLICY = {"deletes_per_s": 10_000}
"""A pace that spares storages is kept by the world's clock."""
LOOK_EVERY_H = 3
"""At the memory."""


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def live(
    files: int, seed: int, tick: timedelta, *, deaths: int | None = None, policy: Mapping[str, Any] = POLICY
) -> list[Finding]:
    """Live through a week, say what happened, and return what was found at its end."""
    cost = Cost()
    outputs = week(files, seed)[::-1]
    with (
        town(sites(), FaultPlan.model_validate({"seed": seed, **FAULTS})) as around,
        week_clock(around.hands, around.catalogue, START) as clock,
    ):
        house = House(around)
        _configure(house, policy)
        world = World(around, clock, house, outputs, Random(seed))
        run = Run(around, clock, house, world, tick, deaths)
        _watch(run, cost)
        findings = examine(Scene(house.conn, around.folder, world.truth, START, clock.now))
        for line in report.table(house.conn):
            say(line)
        say("")
        world.happened["times that a breaker opened"] = report.breakers(house.conn)
        for line in report.counts(world.happened, run.deaths, run.spared, house.reds):
            say(line)
        say("")
        for line in verdict(findings):
            say(line)
        quiet = (run.at - START).days - DAYS
        say(f"\n{DAYS} days and {quiet} quiet ones after them: {cost.sentence(around.folder)}; seed {seed}.")
        house.close()
    return findings


def _configure(house: House, policy: Mapping[str, Any]) -> None:
    ensure_partitions(house.conn, START.date())
    put_sites(house.conn, {site: site_pfn(site, "") for site in sites()}, "week")
    put_policy(house.conn, None, None, policy, "week")
    put_subscription(
        house.conn,
        read_subscription({"name": HOOK, "kind": "webhook", "conn_id": HOOK, "settings": {"batch": 1000}}),
        "week",
    )


def _watch(run: Run, cost: Cost) -> None:
    """Show where the week is; drawn by this thread alone, since workers are forked off it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    errors = Console(stderr=True)
    with Progress(
        *columns, console=errors, transient=True, disable=not errors.is_terminal, auto_refresh=False
    ) as bar:
        task = bar.add_task("the week begins", total=DAYS * 24.0)

        def on_tick(now: Run) -> None:
            if not now.at.hour % LOOK_EVERY_H:
                cost.look()
            hours = (now.at - START) / timedelta(hours=1)
            bar.update(
                task, completed=min(hours, DAYS * 24.0), description=report.moment(now.at), refresh=True
            )

        run.live(on_tick)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m week", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--tick-min", type=int, default=60, help="minutes of the week between two runs of a DAG"
    )
    parser.add_argument("--deaths", type=int, help="of workers between two effects; all of them if left out")
    parser.add_argument(
        "--keep-failed-h", type=int, help="keep copies of failed files so long, not for 7 days"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    kept = {} if args.keep_failed_h is None else {"clean_failed_after_h": args.keep_failed_h}
    tick = timedelta(minutes=args.tick_min)
    findings = live(args.files, args.seed, tick, deaths=args.deaths, policy=POLICY | kept)
    return 1 if any(one.violations for one in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
