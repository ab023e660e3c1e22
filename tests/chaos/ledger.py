"""The table at the end: fault, times injected, files in flight, lost, duplicated, longest without a next step."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from chaos.evidence import LONGEST_IDLE_S, Findings

HEADINGS = ("fault", "injected", "in flight", "lost", "duplicated", "longest without a next step")


@dataclass(frozen=True, slots=True)
class Entry:
    """One fault and what it did."""

    fault: str
    injected: int
    in_flight: int
    """Files on their way when it struck (of the last strike, when there were several)."""
    findings: Findings

    @property
    def cells(self) -> tuple[str, ...]:
        found = self.findings
        numbers = (self.injected, self.in_flight, found.lost, found.duplicated)
        return (self.fault, *map(str, numbers), f"{found.longest_idle_s:.1f} s")


class Ledger:
    """Collects entries."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.is_whole = True
        """False when faults were left out for want of time."""

    @property
    def is_right(self) -> bool:
        return self.is_whole and bool(self.entries) and all(entry.findings.is_right for entry in self.entries)

    def table(self) -> str:
        rows = [HEADINGS, *(entry.cells for entry in self.entries)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
        lines = [
            "  ".join(
                [
                    row[0].ljust(widths[0]),
                    *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
                ]
            )
            for row in rows
        ]
        problems = [f"{entry.fault}: {text}" for entry in self.entries for text in entry.findings.problems]
        return "\n".join([*lines, self._verdict(), *problems])

    def save(self, path: Path) -> None:
        path.write_text(json.dumps([asdict(entry) for entry in self.entries], indent=1))

    def _verdict(self) -> str:
        found = [entry.findings for entry in self.entries]
        longest_s = max((one.longest_idle_s for one in found), default=0.0)
        return (
            f"{sum(entry.injected for entry in self.entries)} faults, {sum(one.files for one in found):,} files:"
            f" {sum(one.lost for one in found)} lost, {sum(one.duplicated for one in found)} duplicated,"
            f" none without a next step for longer than {longest_s:.1f} s"
            f" (promised: {LONGEST_IDLE_S:.0f} s). {'All is well.' if self.is_right else 'NOT WELL.'}"
        )
