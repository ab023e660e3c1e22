"""A realistic day of CMS user output, from a seed: the same seed is the same day, byte for byte.

As in production, few users write most files, a task runs at the few sites that hold its data, its jobs end in
a burst, and people submit by day.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha1
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any, Final

from asyncstageout.core.naming import BadName
from asyncstageout.sandbox.filling import Filling
from asyncstageout.simulation.arrivals import HOURLY_SUBMISSIONS

DEMO_MEDIAN_BYTES: Final = 100_000
"""2,000 files of a demo are 300 MB."""
REAL_MEDIAN_BYTES: Final = 300_000_000
SIZE_SIGMA: Final = 1.0
LARGEST_IN_MEDIANS: Final = 40
SMALLEST_BYTES: Final = 500
LOG_SHARE: Final = 0.1
LOG_IN_MEDIANS: Final = 0.01
FILES_PER_FOLDER: Final = 1000
"""CRAB's: the folders ``0000``, ``0001`` and so on."""
PRIORITIES: Final = {1: 2, 2: 3, 3: 90, 4: 3, 5: 2}

SITES: Final[dict[str, int]] = {
    "T2_CH_CERN": 30, "T2_US_Nebraska": 20, "T2_US_Wisconsin": 20, "T2_US_Purdue": 18, "T2_US_MIT": 16,
    "T2_US_Florida": 16, "T2_US_Caltech": 15, "T2_US_UCSD": 15, "T2_US_Vanderbilt": 12, "T1_US_FNAL": 25,
    "T2_DE_DESY": 20, "T2_DE_RWTH": 14, "T1_DE_KIT": 15, "T2_IT_Legnaro": 12, "T2_IT_Pisa": 12,
    "T2_IT_Bari": 10, "T2_IT_Rome": 10, "T1_IT_CNAF": 14, "T2_FR_GRIF": 12, "T2_FR_IPHC": 8,
    "T1_FR_CCIN2P3": 10, "T2_UK_London_IC": 14, "T2_UK_London_Brunel": 8, "T2_UK_SGrid_RALPP": 8,
    "T1_UK_RAL": 10, "T2_ES_CIEMAT": 9, "T2_ES_IFCA": 6, "T1_ES_PIC": 8, "T2_BE_IIHE": 10, "T2_BE_UCL": 7,
    "T2_CH_CSCS": 8, "T2_EE_Estonia": 7, "T2_FI_HIP": 5, "T2_HU_Budapest": 5, "T2_PL_Cyfronet": 4,
    "T2_PT_NCG_Lisbon": 3, "T2_AT_Vienna": 4, "T2_GR_Ioannina": 2, "T2_UA_KIPT": 3, "T2_TR_METU": 2,
    "T2_BR_SPRACE": 6, "T2_BR_UERJ": 2, "T2_CN_Beijing": 4, "T2_IN_TIFR": 5, "T2_KR_KISTI": 4,
    "T2_TW_NCHC": 3, "T2_PK_NCP": 1, "T3_US_FNALLPC": 8, "T3_US_Baylor": 2, "T3_US_Colorado": 3,
    "T3_US_NotreDame": 3, "T3_US_UMD": 3, "T3_US_Rutgers": 2, "T3_IT_Trieste": 2, "T3_KR_KNU": 2,
    "T3_CH_PSI": 4, "T3_FR_IPNL": 2, "T3_UK_London_QMUL": 2, "T3_TW_NTU_HEP": 2, "T3_BG_UNI_SOFIA": 1,
}  # fmt: skip
"""Sites and how many of the jobs each runs. A day of fewer sites takes the first ones."""

SURNAMES: Final = (
    "bianchi", "rossi", "muller", "schmidt", "dupont", "martin", "garcia", "lopez", "smith", "jones", "kim",
    "park", "chen", "wang", "liu", "tanaka", "sharma", "gupta", "silva", "santos", "novak", "kovacs",
    "ivanov", "petrov", "jansen", "peeters", "nielsen", "virtanen", "tamm", "kowalski", "yilmaz", "papas",
    "conti", "ferrari", "weber", "fischer", "leroy", "moreau", "brown", "davis", "lee", "choi", "huang",
    "costa", "horvat",
)  # fmt: skip
INITIALS: Final = "abcdefghijklmnoprstvwz"
TAILS: Final = ("", "run3", "nano", "susy/2026", "hgg", "ttbar_v2", "bphys", "exo/skims")
PRIMARIES: Final = (
    "TTto2L2Nu_TuneCP5_13p6TeV_powheg-pythia8", "DYto2L-4Jets_MLL-50_TuneCP5_13p6TeV", "Muon0", "Muon1",
    "EGamma0", "JetMET1", "QCD_PT-120to170_TuneCP5_13p6TeV", "WtoLNu-2Jets_TuneCP5_13p6TeV", "ParkingHH",
    "GluGluHto2G_M-125_TuneCP5_13p6TeV", "Tau", "BuToKMuMu_SoftQCDnonD_TuneCP5_13p6TeV",
)  # fmt: skip
OUTPUT_NAMES: Final = ("output", "tree", "ntuple", "miniaod", "nanoskim", "histos")


@dataclass(frozen=True, slots=True)
class DayFile:
    """One output file of the day."""

    number: int
    arrives_after_s: float
    """From the start of the day to the request."""
    request: dict[str, Any]
    """As :class:`asyncstageout.core.requests.TransferRequest` takes it."""

    @property
    def size_bytes(self) -> int:
        return int(self.request["size_bytes"])

    @property
    def source_path(self) -> Path:
        """Below the folder of all sites."""
        return site_path(self.request["source"], self.request["source_lfn"])

    @property
    def destination_path(self) -> Path:
        return site_path(self.request["destination"], self.request["destination_lfn"])


@dataclass(frozen=True, slots=True)
class _Task:
    name: str
    username: str
    destination: str
    source_base: str
    destination_base: str
    sources: Sequence[str]
    output_name: str
    priority: int
    starts_after_s: float


class _Output:
    """One file, before its name, size and checksum are worked out: a day holds up to a million of these."""

    __slots__ = ("arrives_after_s", "job", "log", "size_bytes", "source", "task")

    def __init__(self, task: _Task, job: int, *, log: bool, random: Random, median_bytes: int) -> None:
        self.task = task
        self.job = job
        self.log = log
        self.source = random.choice(task.sources)
        median = median_bytes * (LOG_IN_MEDIANS if log else 1)
        size = random.lognormvariate(math.log(max(median, SMALLEST_BYTES)), SIZE_SIGMA)
        self.size_bytes = int(min(max(size, SMALLEST_BYTES), median_bytes * LARGEST_IN_MEDIANS))
        # Most jobs of a task end together, the last ones long after.
        self.arrives_after_s = task.starts_after_s + random.lognormvariate(math.log(3600), 0.7)


@dataclass(frozen=True, slots=True)
class Day:
    """What the day looks like. Every field but ``label`` and ``starts_at`` only shapes it.

    Attributes:
        label: stands in all task names, and in all LFNs: two days of other labels have no file in common.
        starts_at: aware UTC; the dates in the names.
        people: seed of the users' names, where it is not ``seed``: other days of the same people.
    """

    seed: int = 1
    file_count: int = 2000
    user_count: int = 1000
    site_count: int = len(SITES)
    median_bytes: int = DEMO_MEDIAN_BYTES
    label: str = "day"
    starts_at: datetime = datetime(2026, 11, 22, tzinfo=UTC)
    people: int | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.site_count <= len(SITES):
            raise ValueError(f"a day has 2 to {len(SITES)} sites, not {self.site_count}")
        if self.file_count < 0 or self.user_count < 1:
            raise ValueError("a day has at least one user, and no negative number of files")
        if not self.label.isalnum() or not self.label.isascii():
            raise BadName(f"the label of a day holds letters and digits only: {self.label!r}")

    @property
    def sites(self) -> list[str]:
        return list(SITES)[: self.site_count]

    @property
    def task_pattern(self) -> str:
        """SQL LIKE pattern of the names of this day's tasks."""
        return rf"%\_{self.label}-%"

    @property
    def filling(self) -> Filling:
        """The contents of its files."""
        return Filling(self.seed)

    def files(self) -> Iterator[DayFile]:
        """Yield the files in the order in which they arrive."""
        filling = self.filling
        for number, output in enumerate(self._outputs()):
            record = _request(output, filling.adler32(number, output.size_bytes))
            yield DayFile(number, round(output.arrives_after_s, 3), record)

    def _outputs(self) -> list[_Output]:
        random = Random(self.seed)
        tasks = self._tasks(random)
        # Zipf over tasks too: some people write a hundred times what others do.
        chosen = random.choices(tasks, cum_weights=_zipf(len(tasks)), k=self.file_count)
        jobs = dict.fromkeys((task.name for task in tasks), 0)
        outputs = []
        for task in chosen:
            jobs[task.name] += 1
            log = random.random() < LOG_SHARE
            outputs.append(
                _Output(task, jobs[task.name], log=log, random=random, median_bytes=self.median_bytes)
            )
        return sorted(outputs, key=lambda output: output.arrives_after_s)

    def _tasks(self, random: Random) -> list[_Task]:
        weights = list(accumulate(SITES[site] for site in self.sites))
        # People keep their output at Tier 2 and 3; the disks of a Tier 1 are not theirs.
        homes = [site for site in self.sites if not site.startswith("T1")]
        tasks = []
        named_by = random if self.people is None else Random(self.people)
        for username in _usernames(self.user_count, named_by):
            user_homes = random.sample(homes, k=min(len(homes), random.choice((1, 1, 2))))
            tail = random.choice(TAILS)
            for number in range(1, random.choice((1, 1, 2, 3, 5)) + 1):
                sources = random.choices(self.sites, cum_weights=weights, k=random.randint(2, 8))
                home = random.choice(user_homes)
                tasks.append(
                    self._task(random, number, username=username, home=home, tail=tail, sources=sources)
                )
        random.shuffle(tasks)
        return tasks

    def _task(
        self, random: Random, number: int, *, username: str, home: str, tail: str, sources: Sequence[str]
    ) -> _Task:
        hour = random.choices(range(24), HOURLY_SUBMISSIONS)[0]
        starts_after_s = hour * 3600 + random.random() * 3600
        stamp = self.starts_at + timedelta(seconds=starts_after_s)
        title = f"{self.label}-analysis{number}"
        folder = "/".join(
            filter(None, (tail, random.choice(PRIMARIES), f"crab_{title}", f"{stamp:%y%m%d_%H%M%S}"))
        )
        dn_hash = sha1(f"/DC=test/DC=sandbox/CN={username}".encode(), usedforsecurity=False).hexdigest()
        return _Task(
            name=f"{stamp:%y%m%d_%H%M%S}_{username}_{title}",
            username=username,
            destination=home,
            source_base=f"/store/temp/user/{username}.{dn_hash}/{folder}",
            destination_base=f"/store/user/{username}/{folder}",
            sources=sources,
            output_name=random.choice(OUTPUT_NAMES),
            priority=random.choices(list(PRIORITIES), list(PRIORITIES.values()))[0],
            starts_after_s=starts_after_s,
        )


def write_files(
    files: Sequence[DayFile],
    filling: Filling,
    sites_root: Path,
    on_written: Callable[[int], object] = lambda _: None,
) -> int:
    """Leave each file at its source as its job would have; return how many bytes that were.

    Args:
        sites_root: holds one folder per site, with ``store/...`` below it.
        on_written: called after each file with its size in bytes.
    """
    made: set[Path] = set()
    for file in files:
        path = sites_root / file.source_path
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        with path.open("wb", buffering=0) as output:
            for piece in filling.pieces(file.number, file.size_bytes):
                output.write(piece)
        on_written(file.size_bytes)
    return sum(file.size_bytes for file in files)


def site_path(site: str, lfn: str) -> Path:
    """Return where a sandbox site keeps an LFN, below the folder of all sites."""
    return Path(site, lfn.lstrip("/"))


def _request(output: _Output, adler32: str) -> dict[str, Any]:
    task = output.task
    folder = f"{output.job // FILES_PER_FOLDER:04d}"
    name = (
        f"{folder}/log/cmsRun_{output.job}.log.tar.gz"
        if output.log
        else f"{folder}/{task.output_name}_{output.job}.root"
    )
    return {
        "task": task.name,
        "username": task.username,
        "source": output.source,
        "destination": task.destination,
        "source_lfn": f"{task.source_base}/{name}",
        "destination_lfn": f"{task.destination_base}/{name}",
        "size_bytes": output.size_bytes,
        "adler32": adler32,
        "type": "log" if output.log else "output",
        "priority": task.priority,
        "job_id": str(output.job),
    }


def _usernames(count: int, random: Random) -> list[str]:
    """Return accounts as CERN gives them (``abianchi``), numbered when people share a name."""
    names = [initial + surname for initial in INITIALS for surname in SURNAMES]
    random.shuffle(names)
    return [names[n % len(names)] + (str(n // len(names)) if n >= len(names) else "") for n in range(count)]


def _zipf(count: int) -> list[float]:
    return list(accumulate(1 / rank for rank in range(1, count + 1)))
