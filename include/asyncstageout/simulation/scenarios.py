"""The loads that are asked about, and the installations that carry them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from asyncstageout.simulation.arrivals import DAY_S, FLAT, HOURLY_SUBMISSIONS, peak


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What carries the load. Cores are this machine's on which the costs were measured."""

    postgres_cores: float = 1.0
    worker_cores: float = 1.0
    """Of the tasks' Python."""
    api_cores: float = 1.0
    """Of whatever takes requests in."""
    schedulers: int = 1

    cycle_files: int = 20_000
    """The ``limit`` of a run of ``stageout_transfer``."""
    cycles_at_once: int = 3
    """Its ``max_active_runs``."""
    shards: int = 4
    jobs_per_shard: int = 50
    submit_threads: int = 4
    bell_s: float = 3.0
    """The doorbell's ``quiet_s``."""
    linger_s: float = 1.0
    """How long a watch waits after the first news."""
    files_per_job: int = 200
    history_files: int = 20_000
    """Rows that ``update_catalogue`` moves to the history in one run."""

    fts_servers: int = 1
    """Endpoints, each watched by itself."""
    fts_hosts: int = 1
    """All together."""
    fts_host_cores: float = 2.0
    link_slots: float = 60.0
    """Copies at a time on one link, and from or to one site: FTS's defaults (OptimizerConstants)."""
    storage_slots: float = 60.0

    installations: int = 1
    """Independent catalogues with all of the above but FTS for each; sources are shared out over them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A day of files."""

    title: str
    source: str
    """Who said so, or whose assumption it is."""
    files_per_day: float
    sites: int
    deployment: Deployment = Deployment()
    site_exponent: float = 0.7
    """How unequal sites are (topology); 0: all alike."""
    profile: tuple[float, ...] = HOURLY_SUBMISSIONS
    file_bytes: float = 5e8
    files_per_stream: float = 200.0
    """Files of one task on one link ..."""
    stream_s: float = 3600.0
    """... and over how long they come."""
    network_headroom: float = 3.0
    """Bandwidth of a site, in times of what its files need on average, in either direction."""
    least_gbit_s: float = 10.0
    """Of any site."""
    failing: bool = True
    """Whether copies fail as the calibration says; FakeFTS only succeeded."""

    @property
    def peak_files_per_s(self) -> float:
        return self.files_per_day / DAY_S * peak(self.profile)


BIG: Final = Deployment(
    postgres_cores=4,
    worker_cores=4,
    api_cores=2,
    fts_servers=2,
    fts_hosts=20,
    link_slots=200,
    storage_slots=2000,
)
"""One installation as it is today, on a machine of its own, with FTS as WLCG runs it."""

SCENARIOS: Final[Mapping[str, Scenario]] = MappingProxyType(
    {
        "lifecycle": Scenario(
            title="the original's own simulation: 8 s x 20 files, one host, FakeFTS",
            source="AsyncStageOut, fake-monitor-input.conf; two nodes, 2 GiB files",
            files_per_day=216_000,
            sites=2,
            site_exponent=0.0,
            profile=FLAT,
            file_bytes=2 * 1024**3,
            files_per_stream=20 * 450,
            failing=False,
        ),
        "cms2015": Scenario(
            title="CMS in 2015: 400,000 files a day, 60 sites",
            source="CHEP 2015, 1,000 users a month",
            files_per_day=400_000,
            sites=60,
        ),
        "cms2017": Scenario(
            title="CMS in 2017: 600,000 files a day, 100 sites",
            source="J. Phys. Conf. Ser. 898 (2017) 042048",
            files_per_day=600_000,
            sites=100,
        ),
        "wlcg": Scenario(
            title="all that FTS moves for WLCG: 2.84 M files a day",
            source="CHEP 2023: 1.2 G files, 1.83 EB in 14 months",
            files_per_day=2_840_000,
            sites=170,
            file_bytes=1.5e9,
            deployment=Deployment(fts_hosts=20, link_slots=200, storage_slots=600),
        ),
        "hundredfold": Scenario(
            title="a hundred times CMS in 2015: 40 M files a day",
            source="this project's target",
            files_per_day=40_000_000,
            sites=100,
            deployment=BIG,
        ),
        "internet": Scenario(
            title="1,000 sites, 1 G files a day",
            source="nobody has it; the next thousandfold",
            files_per_day=1_000_000_000,
            sites=1_000,
            deployment=BIG,
        ),
    }
)
