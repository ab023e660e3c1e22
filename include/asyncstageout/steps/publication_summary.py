"""Last step of publication: what a run did, and whether a person has to look."""

from __future__ import annotations

from psycopg import Connection

from asyncstageout.catalogue.publishing import failed_in_run, run_counts, stuck_blocks
from asyncstageout.steps.recording import Summary, files

STUCK_S = 3600.0
"""A DBS that is restarted, or a race, is over long before."""
INPUT_S = 86_400.0
NAMED = 3
RUNBOOK = "runbooks/publication.md"


class PublicationNeedsPeople(Exception):
    """DBS refused something for good, or takes nothing for long; ``str()`` says what."""


def summarise(conn: Connection, *, dag_id: str, run_id: str) -> Summary:
    """Say what a run published.

    Raises:
        PublicationNeedsPeople: blocks failed in this run, or an instance takes none.
    """
    counts = run_counts(conn, dag_id, run_id)
    published, failed = counts.get("published_files", 0), counts.get("failed_files", 0)
    sentence = f"{files(published)} in {counts.get('published_blocks', 0):,} blocks are published"
    if failed:
        sentence += f"; {files(failed)} failed, each with its reason"
    problems = [
        f"block {name} failed: {reason}" for name, reason in failed_in_run(conn, dag_id, run_id, NAMED)
    ]
    problems += [
        f"{one.dbs} has not taken {one.blocks:,} blocks, the oldest since {one.since:%Y-%m-%d %H:%M} UTC: "
        f"{one.reason or 'nobody told it of them'}"
        for one in stuck_blocks(conn, STUCK_S, INPUT_S)
    ]
    if problems:
        raise PublicationNeedsPeople(f"{sentence}. {'; '.join(problems)} ({RUNBOOK})")
    return Summary(sentence, {"published_files": published, "failed_files": failed})
