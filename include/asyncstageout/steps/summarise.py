"""Last step of a cycle: say in one sentence what became of it, and whether it is red or green."""

from __future__ import annotations

from psycopg import Connection

from asyncstageout.catalogue.cycles import Cycle, end_stage
from asyncstageout.catalogue.jobs import cycle_result
from asyncstageout.steps.recording import Summary, files, size


class CycleIncomplete(Exception):
    """FTS did not confirm every job of a cycle. Nothing is lost: the next cycle takes them over."""

    def __init__(self, cycle_id: int, jobs: int) -> None:
        self.cycle_id = cycle_id
        self.jobs = jobs
        super().__init__(
            f"FTS has not confirmed {jobs} jobs of cycle {cycle_id}; the next cycle submits them again."
            " See the submit tasks of this run for what FTS answered, and `aso doctor`"
        )


def summarise(conn: Connection, cycle: Cycle) -> Summary:
    """Return the result of a cycle.

    Raises:
        CycleIncomplete: jobs are still PLANNED after the submit step.
    """
    result = cycle_result(conn, cycle.cycle_id)
    if result.planned_jobs and not cycle.params.dry_run:
        raise CycleIncomplete(cycle.cycle_id, result.planned_jobs)
    end_stage(conn, cycle.cycle_id, "summarised")
    sentence = (
        f"Submitted {result.jobs} FTS jobs, {files(result.files)}, {size(result.size_bytes)}"
        f" on {result.links} links"
    )
    if result.held:
        reasons = ", ".join(f"{count} {why}" for why, count in result.held)
        sentence += f"; held back: {reasons}"
    return Summary(
        sentence,
        {"jobs": result.jobs, "files": result.files, "size_bytes": result.size_bytes,
         "links": result.links, "held_links": sum(count for _, count in result.held)},
    )  # fmt: skip
