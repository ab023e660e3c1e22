"""All output files of a week, from a seed: when each arrives, what is in it, and what is said of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from asyncstageout.catalogue.file_metadata import Metadata
from asyncstageout.core.naming import request_id
from asyncstageout.core.publication import facts_or_problem
from asyncstageout.sandbox.days import PRIMARIES, Day, site_path
from asyncstageout.sandbox.faults import share
from asyncstageout.sandbox.filling import Filling

START = datetime(2026, 11, 23, tzinfo=UTC)
"""A Monday."""
DAYS = 7
DAY = timedelta(days=1)
SITES = 30
USERS = 60
MEDIAN_BYTES = 1000
DAY_SHARES = (0.16, 0.17, 0.15, 0.15, 0.15, 0.05, 0.05)
"""Of the files, by day of the week; the rest are the burst."""
BURST_DAY, BURST_HOUR = 1, 15
BURST_S = 1800
"""A large task of two users ends on Tuesday afternoon, nearly at once."""
PUBLISHED_SHARE = 0.8
"""Of the tasks."""
DIRECT_SHARE = 0.04
"""Of the tasks: their jobs write straight to the destination."""
AGAIN = 10_000_000
"""Added to a file's number for what a later retry of its job writes."""


@dataclass(frozen=True)
class Output:
    """One output file, as its job left it."""

    arrives_at: datetime
    number: int
    filling: Filling
    request: dict[str, Any]

    @cached_property
    def request_id(self) -> str:
        return request_id(self.request["source_lfn"])

    @property
    def is_wanted(self) -> bool:
        """Whether it is to be in DBS."""
        return bool(self.request["publish"])

    @property
    def is_direct(self) -> bool:
        return bool(self.request["already_there"])

    @property
    def source_path(self) -> Path:
        """Below the folder of all sites."""
        return site_path(self.request["source"], self.request["source_lfn"])

    @property
    def destination_path(self) -> Path:
        return site_path(self.request["destination"], self.request["destination_lfn"])

    def write(self, sites: Path, at: datetime) -> None:
        """Leave the file where its job does, with the time at which it was written."""
        path = sites / (self.destination_path if self.is_direct else self.source_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(self.filling.pieces(self.number, self.request["size_bytes"])))
        os.utime(path, (at.timestamp(), at.timestamp()))

    def written_again(self, source: str) -> Output:
        """Return what a later retry of the job makes of it, at a site of its own."""
        number, size_bytes = self.number + AGAIN, int(self.request["size_bytes"]) + 17
        again = self.request | {
            "source": source,
            "size_bytes": size_bytes,
            "adler32": self.filling.adler32(number, size_bytes),
            "job_retry_count": self.request["job_retry_count"] + 1,
        }
        return replace(self, number=number, request=again)

    def metadata(self) -> Metadata:
        """Return what is said of it for DBS."""
        request = self.request
        username, task = request["username"], request["task"]
        primary = PRIMARIES[int(share(task) * len(PRIMARIES))]
        title = task.rpartition("_")[2]
        said = {
            "taskname": task,
            "filetype": "EDM",
            "jobid": request["job_id"],
            "outdataset": f"/{primary}/{username}-{title}-94ba0e06145abd65ccb1d21786dc7e1d/USER",
            "acquisitionera": "null",
            "swversion": "CMSSW_14_0_1",
            "inevents": 100,
            "globaltag": "None",
            "publishname": f"{title}-94ba0e06145abd65ccb1d21786dc7e1d",
            "location": request["destination"],
            "tmplocation": request["source"],
            "runlumi": {"1": {str(self.number % AGAIN + 1): "100"}},
            "adler32": request["adler32"],
            "cksum": 2091402041,
            "md5": "asda",
            "lfn": request["destination_lfn"],
            "filesize": request["size_bytes"],
            "parents": [],
            "state": None,
            "tmplfn": request["source_lfn"],
        }
        return Metadata(self.request_id, task, username, json.dumps(said), facts_or_problem(said))


def week(files: int, seed: int) -> list[Output]:
    """Return the files of a week in the order of their arrival: busy days, quiet nights, a weekend, a burst."""
    counts = [int(files * part) for part in DAY_SHARES]
    outputs = [output for day, count in enumerate(counts) for output in _day(day, count, seed)]
    outputs += _burst(files - len(outputs), seed)
    return sorted(outputs, key=lambda output: (output.arrives_at, output.request_id))


def sites() -> list[str]:
    return Day(site_count=SITES).sites


def _day(number: int, files: int, seed: int) -> Iterator[Output]:
    starts_at = START + number * DAY
    day = Day(
        seed=seed + number, file_count=files, user_count=USERS, site_count=SITES, median_bytes=MEDIAN_BYTES,
        label=f"week{number}", starts_at=starts_at, people=seed,
    )  # fmt: skip
    filling = day.filling
    for file in day.files():
        arrives_at = starts_at + timedelta(seconds=file.arrives_after_s)
        yield Output(arrives_at, file.number, filling, _full(file.request, seed))


def _burst(files: int, seed: int) -> Iterator[Output]:
    starts_at = START + BURST_DAY * DAY
    day = Day(
        seed=seed + DAYS, file_count=files, user_count=2, site_count=SITES, median_bytes=MEDIAN_BYTES,
        label="burst", starts_at=starts_at, people=seed,
    )  # fmt: skip
    filling = day.filling
    for file in day.files():
        arrives_at = starts_at + timedelta(hours=BURST_HOUR, seconds=file.number * BURST_S / files)
        yield Output(arrives_at, file.number, filling, _full(file.request, seed))


def _full(request: dict[str, Any], seed: int) -> dict[str, Any]:
    """Add what a day leaves out: is it published, was it written to its destination?"""
    task, is_log = request["task"], request["type"] == "log"
    return request | {
        "publish": not is_log and share(seed, "published", task) < PUBLISHED_SHARE,
        "already_there": share(seed, "direct", task) < DIRECT_SHARE,
        "job_retry_count": 0,
    }
