"""Every number that the model takes from the world, with where it is from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, NamedTuple

BENCH = "measured by bench.calibrate"
AIRFLOW = "measured on Airflow 3.3.2, LocalExecutor, two cores, scheduler_idle_sleep_time 0.1"
FTS = "measured on FTS 3.13 on two busy cores"
FTS_SOURCE = "source of FTS"
STEPS = ("intake", "group", "submit", "sense", "update", "move")


class BadCalibration(ValueError):
    """A calibration lacks a number, or has one that the model does not know."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """CPU of a step, in seconds: so much for each file, and so much for each FTS job."""

    python_file_s: float
    postgres_file_s: float
    python_job_s: float = 0.0
    postgres_job_s: float = 0.0

    def python_s(self, files: float, jobs: float = 0.0) -> float:
        return self.python_file_s * files + self.python_job_s * jobs

    def postgres_s(self, files: float, jobs: float = 0.0) -> float:
        return self.postgres_file_s * files + self.postgres_job_s * jobs


class Number(NamedTuple):
    """A number as the report shows it."""

    name: str
    value: float
    meaning: str
    source: str


def _number(meaning: str, source: str, default: Any = MISSING) -> Any:
    """A field of :class:`Calibration`; one without a default must be measured."""
    return field(default=default, metadata={"meaning": meaning, "source": source})


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What things cost and how long they take. ``_s`` are seconds, of CPU where the meaning says so."""

    measured_on: str
    """Machine, commit and date of what was measured."""
    steps: Mapping[str, StepCost]
    held_out: Mapping[str, float] | None = None
    """A run of the bench that no cost was drawn from: files per job, CPU of a file measured and reckoned."""

    wal_file_bytes: float = _number("write-ahead log of a file, from arrival to DONE", BENCH)
    live_file_bytes: float = _number("row of a live file, with indexes", BENCH)
    event_file_bytes: float = _number("events of a file, with indexes", BENCH)
    job_bytes: float = _number("row of an FTS job, with indexes", BENCH)
    history_file_bytes: float = _number("row of a file in the history, with indexes", "load.history", 600.0)

    run_start_s: float = _number("from the doorbell to running code", AIRFLOW, 1.15)
    task_hop_s: float = _number("from the end of a task to the code of the next one", AIRFLOW, 0.45)
    task_cpu_s: float = _number("CPU of Airflow for a task, its database included", AIRFLOW, 0.33)
    scheduler_tasks_per_s: float = _number("tasks that one scheduler starts", AIRFLOW, 5.5)
    trigger_start_s: float = _number("from a deferred task to its trigger's code", AIRFLOW, 1.36)
    trigger_end_s: float = _number("from a trigger's end to that of its task: 0 to 1 s", AIRFLOW, 0.5)
    next_run_s: float = _number("from the end of a continuous run to the next one", AIRFLOW, 0.15)

    ask_row_s: float = _number(
        "CPU of the triggerer for a row of a file that FTS is asked for",
        "ADR 0005: 4.5 CPU-s a minute for 2,250 rows/s",
        33e-6,
    )
    fts_post_file_s: float = _number("CPU of FTS to accept a file", f"{FTS}: 1,800 files/s", 1.11e-3)
    fts_post_job_s: float = _number(
        "CPU of FTS to accept a job, beside its files",
        "assumed: ten files' worth of a status row, as core.polling counts a job",
        1.8e-3,
    )
    fts_row_s: float = _number("CPU of FTS for a status row of a file", f"{FTS}: 11,000 rows/s", 0.18e-3)
    fts_scheduler_s: float = _number("between two runs of FTS's scheduler", "fts3config", 2.0)
    fts_visible_s: float = _number("from the end of a copy to its row in FTS", "fts3config", 1.0)
    fts_optimizer_s: float = _number(
        "between two runs of FTS's optimizer", f"{FTS_SOURCE}: optimizerSteadyInterval", 60.0
    )
    fts_min_active: float = _number("copies on a link at first", f"{FTS_SOURCE}: DEFAULT_MIN_ACTIVE", 2.0)
    fts_step: float = _number(
        "copies more on a link that has a queue, each run", f"{FTS_SOURCE}: increaseStepSize", 1.0
    )
    fts_host_slots: float = _number(
        "copies at a time on one FTS host", "fts3config: url-copy processes", 400.0
    )

    copy_overhead_s: float = _number("of a copy, beside its bytes", f"{FTS}: an empty copy", 2.0)
    stream_bytes_s: float = _number(
        "speed of one copy", "the original's FakeFTS as configured: 100 MiB/s", 104_857_600.0
    )
    attempts_failing: float = _number(
        "share of attempts that fail",
        "assumed: 34,000 failures a day of 2026 (CRABServer#9363) in the 600,000 files a day of 2017",
        0.057,
    )
    failures_for_good: float = _number(
        "share of those that no retry mends", "CRABServer#9363: quota and permission", 0.52
    )

    @classmethod
    def of(cls, measured: Mapping[str, Any]) -> Calibration:
        """Return the calibration of a measurement; its numbers win over the defaults here.

        Args:
            measured: as ``bench.calibrate`` writes it.

        Raises:
            BadCalibration: it is none; names the number.
        """
        numbers = dict(measured.get("numbers", {}))
        known = {one.name: one for one in fields(cls) if one.metadata}
        if unknown := sorted(numbers.keys() - known.keys()):
            raise BadCalibration(f"unknown numbers: {', '.join(unknown)}")
        if lacking := sorted(
            name for name, one in known.items() if one.default is MISSING and name not in numbers
        ):
            raise BadCalibration(f"numbers are missing: {', '.join(lacking)}")
        given = measured.get("steps", {})
        if lacking := [step for step in STEPS if step not in given]:
            raise BadCalibration(f"steps are missing: {', '.join(lacking)}")
        for name, value in numbers.items():
            if not isinstance(value, int | float) or value < 0:
                raise BadCalibration(f"{name}: {value!r} is no number from 0 on")
        try:
            steps = {step: StepCost(**given[step]) for step in STEPS}
        except TypeError as error:
            raise BadCalibration(f"steps: {error}") from error
        return cls(
            measured_on=str(measured.get("measured_on", "unknown")),
            steps=steps,
            held_out=measured.get("held_out"),
            **numbers,
        )

    def numbers(self) -> Iterator[Number]:
        """Yield every number with its source, for the report."""
        for step, cost in self.steps.items():
            for part in fields(cost):
                if value := getattr(cost, part.name):
                    who, per, _ = part.name.split("_")
                    meaning = f"CPU of {who.capitalize()} for a {per} in {step}"
                    yield Number(f"{step}.{part.name}", value, meaning, BENCH)
        for one in fields(self):
            if one.metadata:
                meaning, source = one.metadata["meaning"], one.metadata["source"]
                yield Number(one.name, getattr(self, one.name), meaning, source)
