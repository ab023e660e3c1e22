"""A demo as on the grid: files in their owners' names, two FTS servers, and trouble in the middle of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from psycopg import Connection

from asyncstageout.catalogue.fts_servers import add_server
from asyncstageout.catalogue.policies import add_settings
from asyncstageout.catalogue.restrictions import Area, lift, restrict
from asyncstageout.catalogue.site_sources import SiteSource
from asyncstageout.cli import console
from asyncstageout.cli.options import who
from asyncstageout.cli.surroundings import Surroundings
from asyncstageout.core.identities import Identity
from asyncstageout.core.planning import Link
from asyncstageout.core.restrictions import Mode, Restriction
from asyncstageout.core.scopes import Scope
from asyncstageout.sandbox.airflow_env import SECOND_FTS
from asyncstageout.sandbox.days import Day, DayFile
from asyncstageout.sandbox.layout import LOOPBACK, Layout
from asyncstageout.sandbox.outages import outage
from asyncstageout.sandbox.siteconf import write_siteconf
from asyncstageout.sandbox.users import put_proxies, user_dn
from asyncstageout.steps.load_sites import load_sites

SERVICES = {"fts3_default": "fts", SECOND_FTS: "fts2"}
"""Service of the platform by the connection of its FTS."""
DOWN = SECOND_FTS
FALLS_AT, RISES_AT, RESUMES_AT = 0.1, 0.6, 0.75
"""Shares of the files that are final when the FTS goes down, when it comes back, and when the links go on."""
LEAST_DOWN_S = 30.0
"""Long enough that new jobs go to the other one."""
PATIENCE_S = 60.0
"""What waits for a share that is not reached, because too much is stopped, happens after this time."""


def endpoints(layout: Layout) -> dict[str, str]:
    """Return the URLs of the two FTS servers by their connections."""
    return {
        "fts3_default": f"https://{LOOPBACK}:{layout.ports.fts}",
        SECOND_FTS: f"https://{LOOPBACK}:{layout.ports.fts2}",
    }


def prepare(conn: Connection, day: Day, manifest: Sequence[DayFile], layout: Layout) -> None:
    """Have sites describe themselves, register both FTS servers, and have users leave their proxies."""
    servers = endpoints(layout)
    for name, url in servers.items():
        add_server(conn, name, endpoint=url, by=who())
    write_siteconf(layout.siteconf, day.sites, port=layout.ports.sites, fts=list(servers.values()))
    source = SiteSource(location=str(layout.siteconf), kind="siteconf")
    summary, _ = load_sites(conn, [source], by=who(), now=datetime.now(UTC))
    usernames = {file.request["username"] for file in manifest}
    put_proxies(layout.tls, layout.credentials, usernames)
    add_settings(conn, Scope(), {"credential": "user"}, who())
    console.print(f"{summary.sentence}. {len(usernames)} users left a proxy; their files go in their names.")


def busiest_links(manifest: Sequence[DayFile], count: int = 2) -> list[Link]:
    """Return the links with the most files."""
    links = Counter(Link(file.request["source"], file.request["destination"]) for file in manifest)
    return [link for link, _ in links.most_common(count)]


@dataclass
class Trouble:
    """Two links are paused from the start; one FTS goes down and comes back; then the links go on."""

    layout: Layout
    file_count: int
    late: Callable[[], object]
    """Called when the FTS is down: brings the files that arrive then."""
    paused: list[Restriction] = field(default_factory=list)
    fell_at_s: float | None = None
    rose_at_s: float | None = None
    _down: ExitStack = field(default_factory=ExitStack)

    def begin(self, conn: Connection, links: Sequence[Link]) -> None:
        for source, destination in links:
            area = Area(source=source, destination=destination)
            self.paused.append(
                restrict(conn, Mode.PAUSE, area, reason="demo: the storage is looked at", by=who())
            )
        console.print("Paused: " + ", ".join(str(link) for link in links) + ".")

    def tick(self, conn: Connection, final: int, now_s: float) -> str | None:
        """Do what is due, and say it.

        Args:
            final: files that have reached their end.
        """
        share = final / self.file_count
        if self.fell_at_s is None:
            if share < FALLS_AT:
                return None
            self.fell_at_s = now_s
            self._down.enter_context(outage(self.layout.state_file, SERVICES[DOWN]))
            self.late()
            return f"{DOWN} went down (killed), and more files arrive."
        if self.rose_at_s is None:
            down_s = now_s - self.fell_at_s
            if down_s < LEAST_DOWN_S or (share < RISES_AT and down_s < PATIENCE_S):
                return None
            self.rose_at_s = now_s
            self._down.close()
            return f"{DOWN} comes back after {down_s:.0f} s; {_taken_over(conn, down_s)}."
        if self.paused and (share >= RESUMES_AT or now_s - self.rose_at_s > PATIENCE_S):
            lift(conn, [one.restriction_id for one in self.paused], who())
            self.paused = []
            return "The paused links go on."
        return None

    def end(self, conn: Connection) -> None:
        """Leave nothing stopped, however the demo ended."""
        self._down.close()
        if self.paused:
            lift(conn, [one.restriction_id for one in self.paused], who())
            self.paused = []


def _taken_over(conn: Connection, since_s: float) -> str:
    taken = conn.execute(
        "SELECT fts_server, count(*) FROM fts_job"
        " WHERE submitted_at > now() - make_interval(secs => %s) GROUP BY 1 ORDER BY 1",
        (since_s,),
    ).fetchall()
    return "meanwhile " + (
        ", ".join(f"{name} took {jobs} jobs" for name, jobs in taken) or "nothing was sent"
    )


@dataclass(frozen=True, slots=True)
class Ownership:
    """Whose the FTS jobs of a day are, as the FTS servers have it."""

    jobs: Counter[str]
    """By server."""
    owners: int
    wrong: list[str]
    """A sentence for each job that is not its user's."""

    def sentences(self) -> Iterator[str]:
        if self.wrong:
            yield f"[red]{len(self.wrong)} FTS jobs are not their users'[/]: {'; '.join(self.wrong[:5])}"
            return
        shares = ", ".join(f"{name} {count:,}" for name, count in sorted(self.jobs.items()))
        yield (
            f"[green]Checked at FTS[/]: {self.jobs.total():,} jobs ({shares}), each owned by the user whose "
            f"files it carries, {self.owners} users in all."
        )


def ownership(conn: Connection, day: Day, layout: Layout) -> Ownership:
    """Ask the FTS servers who owns each job that they took for the day."""
    asked: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for server, job_id, identity in conn.execute(
        "SELECT DISTINCT j.fts_server, j.job_id::text, j.identity FROM fts_job j"
        " JOIN transfer_event e ON e.fts_job = j.sid JOIN transfer t ON t.id = e.transfer_id"
        " JOIN task k ON k.id = t.task_id WHERE k.name LIKE %s AND j.submitted_at IS NOT NULL",
        (day.task_pattern,),
    ):
        asked[server][job_id] = user_dn(Identity.read(identity).username)
    wrong: list[str] = []
    owners: set[str] = set()
    for server, wanted in asked.items():
        for job in _jobs_at(layout, server, list(wanted)):
            owners.add(job["user_dn"])
            if job["user_dn"] != wanted[job["job_id"]]:
                wrong.append(
                    f"{job['job_id']} at {server} is {job['user_dn']}'s, not {wanted[job['job_id']]}'s"
                )
    return Ownership(Counter({server: len(jobs) for server, jobs in asked.items()}), len(owners), wrong)


def _jobs_at(layout: Layout, server: str, job_ids: Sequence[str], per_request: int = 50) -> Iterator[Any]:
    with Surroundings(layout).fts_named(server).client() as fts:
        for start in range(0, len(job_ids), per_request):
            # With a comma at its end the answer is a list, also for one job.
            ids = ",".join(job_ids[start : start + per_request])
            yield from fts.ask("GET", f"/jobs/{ids},").json()
