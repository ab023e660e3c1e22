"""The report: Markdown in plain sentences, and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from asyncstageout.simulation.calibration import Calibration
from asyncstageout.simulation.checks import checks
from asyncstageout.simulation.day import INTAKE_SHARE
from asyncstageout.simulation.drawing import Point, chart
from asyncstageout.simulation.headroom import EXACT, TARGET_USE, Limit
from asyncstageout.simulation.measures import Outcome, Resource, Sample
from asyncstageout.simulation.scenarios import Deployment
from asyncstageout.simulation.studies import LARGE_CYCLE_FILES, SLOW_BELL_S, Study, WhatIf

SHARES = (0.5, 0.95, 0.99)
DRAWN = 5
"""Resources in a picture: the busiest."""
DELAYS: dict[str, Callable[[Sample], float | None]] = {
    "arrival to FTS, p50": lambda sample: sample.accepted_after[0],
    "p95": lambda sample: sample.accepted_after[1],
    "end at FTS to DONE, p50": lambda sample: sample.settled_after[0],
    "p95 ": lambda sample: sample.settled_after[1],
}
FIRST_DAY = "two copies on each link"
CORES = (0.5, 1.0)
"""Between which the share of a core may have been that each part of the measured platform had."""
FOLDER = "images/simulation"

HEAD = """# Where this service ends

Made by `make simulation`, from a model (`asyncstageout.simulation`, ADR 0021) of sites, links, FTS and this
service. Costs are those measured on: {measured_on}.
Its cores are meant wherever this page says cores. To ask about another load:
`aso simulate --scenario cms2017 --load-factor 10`; after a new `python -m bench.calibrate`:
`--calibration FILE`.

Not in the model: publication in DBS, deletion of temporary copies, statistics, pages, credentials, Airflow's
own database, the database of FTS, cache misses and bloat of a Postgres with a long past, and breakdowns of
any kind. Attempts fail as they did at CMS.
"""


def markdown(studies: Sequence[Study], calibration: Calibration, ifs: Sequence[WhatIf] = ()) -> str:
    """Return the report; its pictures are :func:`pictures`'."""
    parts = [HEAD.format(measured_on=calibration.measured_on), *_answers(studies)]
    parts += [*_assumed(studies), *_what_if(ifs)]
    for one in studies:
        parts += _scenario(one)
    parts += [*_checks(calibration), *_calibration(calibration)]
    return "\n".join(parts)


def pictures(studies: Iterable[Study]) -> Iterator[tuple[str, str]]:
    """Yield (file name, SVG)."""
    for one in studies:
        samples = one.day.samples
        busiest = one.day.busiest()
        ranked = sorted(busiest, key=lambda resource: -busiest[resource])[:DRAWN]
        use: dict[str, list[Point]] = {
            resource.value: [(sample.at_s, sample.use[resource]) for sample in samples] for resource in ranked
        }
        yield f"{one.name}-use.svg", chart(f"{one.name}: busy part of the busiest", use, _percent, top=1.0)
        backlog = {
            "arriving, files/s": [(sample.at_s, sample.arrived_per_s) for sample in samples],
            "DONE, files/s": [(sample.at_s, sample.done_per_s) for sample in samples],
        }
        yield f"{one.name}-rate.svg", chart(f"{one.name}: files a second", backlog, count)
        delays: dict[str, list[Point]] = {
            title: [(sample.at_s, value) for sample in samples if (value := pick(sample)) is not None]
            for title, pick in DELAYS.items()
        }
        yield f"{one.name}-delay.svg", chart(f"{one.name}: delays", delays, _seconds)


def _answers(studies: Sequence[Study]) -> Iterator[str]:
    yield "## The answers\n"
    yield from _header(
        "scenario",
        "files a day",
        "its deployment carries",
        "and is stopped by",
        "the service alone carries",
        "and is stopped by",
    )
    for one in studies:
        files = one.scenario.files_per_day
        carried = (
            f"{count(found.times * files)} ({_times(found)}) | {_full(found)}"
            for found in (one.limit, one.service_limit)
        )
        yield f"| [{one.name}](#{one.name}) | {count(files)} | {' | '.join(carried)} |"
    yield (
        '\n"The service alone": with sites, networks and FTS hosts that stand anything. A load is carried if'
        " at the day's busiest moment, made to last, nothing piles up; known to a factor of"
        f" {EXACT:g} within the model, and [no further than the model](#how-far-to-trust-it).\n"
    )
    yield (
        f"What carries each at its peak, with nothing busier than {TARGET_USE:.0%} (sites and networks are"
        " not ours to buy):\n"
    )
    yield from _header(
        "scenario",
        "how it runs",
        "installations",
        "Postgres cores",
        "worker cores",
        "API cores",
        "schedulers",
        "FTS servers",
        "FTS hosts",
        "slots of a storage",
        "of a link",
        "tried",
    )
    for one in studies:
        ways = ("as today", "larger cycles")
        for how, needs, held in zip(ways, (one.needs, one.needs_tuned), one.held, strict=True):
            tried = "carries it" if held else "does not carry it"
            yield f"| {one.name} | {how} | {_needs(needs)} | {tried} |"
    yield (
        "\nCores and schedulers are those of each installation, the rest is all together. *Larger cycles*: a"
        f" cycle takes up to {LARGE_CYCLE_FILES:,} files, `update_catalogue` moves as many rows to the"
        f" history, and the doorbell rings every {SLOW_BELL_S:.0f} s, so that fewer FTS jobs are made.\n"
    )
    yield from _header(
        "scenario",
        "log written a day",
        "at the peak",
        "least IOPS (8 kB)",
        "a day's events",
        "kept, by default",
    )
    for one in studies:
        disk = one.disk
        yield (
            f"| {one.name} | {size(disk.written_day_bytes)} | {size(disk.peak_bytes_s)}/s |"
            f" {count(disk.peak_pages_s)} | {size(disk.partition_day_bytes)} | {size(disk.kept_bytes)} |"
        )
    yield ""


def _assumed(studies: Sequence[Study]) -> Iterator[str]:
    yield "## What is assumed\n"
    yield (
        "Nobody measured these for a service like this one. The k-th largest site has a share of k to the"
        " power of minus the exponent, at either end; a stream is a task's files on one link, over an hour."
        " Streams decide how many files fall into one FTS job, and that decides"
        " much else (see the next table).\n"
    )
    yield from _header(
        "scenario", "sites", "exponent", "bytes a file", "files a stream", "Gbit/s of a site, at least",
        "times its average need", "Postgres cores", "worker cores", "FTS hosts",
        "slots of a storage", "of a link",
    )  # fmt: skip
    for one in studies:
        scenario, has = one.scenario, one.scenario.deployment
        yield (
            f"| {one.name} | {scenario.sites:,} | {scenario.site_exponent:g} | {size(scenario.file_bytes)} |"
            f" {scenario.files_per_stream:,.0f} | {scenario.least_gbit_s:g} | {scenario.network_headroom:g} |"
            f" {has.postgres_cores:g} | {has.worker_cores:g} | {has.fts_hosts} | {has.storage_slots:g} |"
            f" {has.link_slots:g} |"
        )
    yield (f"\nIntake has at most {INTAKE_SHARE:.0%} of Postgres. FTS begins the day with {FIRST_DAY}.\n")


def _what_if(found: Sequence[WhatIf]) -> Iterator[str]:
    if not found:
        return
    yield "## What the answer hangs on\n"
    yield f"What the service alone carries, in `{found[0].name}`, if one thing is different:\n"
    yield from _header("if", "files a day", "and is stopped by")
    for one in found:
        yield f"| {one.what} | {count(one.limit.times * one.files_per_day)} | {_full(one.limit)} |"
    yield ""


def _header(*titles: str) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield f"|{'---|' * len(titles)}"


def _needs(needs: Deployment) -> str:
    numbers = (
        needs.installations, needs.postgres_cores, needs.worker_cores, needs.api_cores, needs.schedulers,
        needs.fts_servers, needs.fts_hosts, needs.storage_slots, needs.link_slots,
    )  # fmt: skip
    return " | ".join(f"{number:,.0f}" for number in numbers)


def _scenario(one: Study) -> Iterator[str]:
    scenario, day = one.scenario, one.day
    yield f"## {one.name}\n"
    yield f"{scenario.title} ({scenario.source}).\n"
    yield _sentence("Its deployment", one.limit, scenario.files_per_day)
    yield _sentence("The service alone", one.service_limit, scenario.files_per_day) + "\n"
    whose = (
        "its deployment" if one.day_deployment is scenario.deployment else "what it needs, with larger cycles"
    )
    yield f"A day on {whose}: {told(day)}\n"
    yield from _header("resource", "busy on average", "in its busiest quarter of an hour")
    average, busiest = day.average(), day.busiest()
    for resource in sorted(Resource, key=lambda name: -busiest[name]):
        yield f"| {resource.value} | {_percent(average[resource])} | {_percent(busiest[resource])} |"
    yield ""
    for what in ("use", "rate", "delay"):
        yield f"![{one.name}: {what}]({FOLDER}/{one.name}-{what}.svg)\n"


def told(day: Outcome) -> str:
    """Say in a sentence how a day went."""
    accepted, settled = (
        ", ".join(_seconds(delays.quantile_s(share)) for share in SHARES)
        for delays in (day.accepted_after, day.settled_after)
    )
    left = sum(day.backlog.values())
    return (
        f"{count(day.arrived)} files arrived, {count(day.done)} are DONE, {count(day.failed)} FAILED,"
        f" {count(left)} under way at the end, at most {count(day.largest_backlog)};"
        f" {count(day.jobs)} FTS jobs of {day.arrived / max(day.jobs, 1):.1f} files."
        f" From arrival to accepted by FTS {accepted} (p50, p95, p99); from the end at FTS to DONE {settled}."
    )


def _sentence(who: str, limit: Limit, files_per_day: float) -> str:
    """Say where something ends, and because of what."""
    where = f"files pile up: {limit.stuck.value}" if limit.stuck else "the history is not written fast enough"
    return (
        f"{who} carries {count(limit.times * files_per_day)} files a day ({_times(limit)} the scenario's"
        f" load, at its busiest moment). Above that {where}, because of: {_full(limit)}."
    )


def _checks(calibration: Calibration) -> Iterator[str]:
    yield "## How far to trust it\n"
    yield (
        "Delays that the real platform showed (Airflow, Postgres and a local FTS on two cores), beside the"
        " model's for the same burst. No number of the model was fitted to them, but a first comparison did"
        " find an error in it (ADR 0021). How the two cores were shared is assumed: two thirds of one for"
        f" each part; the last column is for {CORES[0]:g} and {CORES[1]:g}. The model's delays are in"
        " steps of 20 %, so that a difference of less says nothing.\n"
    )
    yield from _header("what", "measured", "model", "off", "source", "model, other shares")
    ranges = zip(*(checks(calibration, cores) for cores in CORES), strict=True)
    for one, others in zip(checks(calibration), ranges, strict=True):
        yield (
            f"| {one.what} | {_seconds(one.measured_s)} | {_seconds(one.model_s)} | {one.off:+.0%} |"
            f" {one.source} | {' to '.join(_seconds(other.model_s) for other in others)} |"
        )
    yield (
        "\nAll of these are bursts of 300 to 2,000 files. No sustained load, no backlog and nothing beyond"
        " two cores was compared with the real platform: there the model is arithmetic, costs that grow in"
        " line with files and jobs.\n"
    )
    if out := calibration.held_out:
        yield (
            f"At {out['files_per_job']:.1f} files a job, where no cost was drawn from, the bench measured"
            f" {out['measured_file_s'] * 1000:.2f} CPU-s for 1,000 files; by the costs below it is"
            f" {out['line_file_s'] * 1000:.2f}, {out['line_file_s'] / out['measured_file_s'] - 1:+.0%}. Where"
            " jobs are that small, trust cores and limits of the service no further than that.\n"
        )


def _calibration(calibration: Calibration) -> Iterator[str]:
    yield "## Its numbers\n"
    yield from _header("number", "value", "meaning", "source")
    for one in calibration.numbers():
        yield f"| `{one.name}` | {one.value:.4g} | {one.meaning} | {one.source} |"
    yield ""


def _full(limit: Limit) -> str:
    return ", ".join(resource.value for resource in limit.full) or "nothing"


def _times(limit: Limit) -> str:
    return f"{limit.times:,.2f}x" if limit.times < 10 else f"{limit.times:,.0f}x"


def _percent(part: float) -> str:
    return f"{part:.0%}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    unit = next((one for one in ((7200, 3600, "h"), (120, 60, "min")) if value >= one[0]), None)
    return f"{value / unit[1]:.0f} {unit[2]}" if unit else f"{value:.1f} s"


def count(number: float) -> str:
    """Say a large number shortly.

    >>> count(999), count(41_000_000), count(2.5e9), count(999_999_999.9)
    ('999', '41 M', '2.5 G', '1 G')
    """
    rounded = float(f"{number:.3g}")
    for least, unit, name in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if rounded >= least:
            return f"{rounded / unit:.3g} {name}"
    return f"{number:,.0f}"


def size(number: float) -> str:
    """Say bytes shortly.

    >>> size(2.5e9)
    '2.5 GB'
    """
    for unit, name in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number / 1e3:.3g} kB"
