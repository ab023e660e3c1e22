"""Where the Python of the running platform spends its time under load: ``python -m bench.spying``, from ``tests``.

Files arrive as on a day of a hundred times the reference load, at its busiest. py-spy looks at the stacks of the
api-server, the scheduler, its tasks, the DAG processor and the triggerer without stopping them, and leaves out threads
that sleep; one that waits for a moment counts. Writes ``docs/images/performance/profiles-platform.txt``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from asyncstageout.sandbox.state import read_status
from bench import report
from bench.arrivals import World
from bench.calibrate import where
from bench.platform import SERVICES, Bench, Load, Sender, running

TIMES, WARM_S, SPIED_S, SPARE_S, RATE = 150.0, 60, 120, 10, 25
FUNCTIONS, PARTS = 12, 8
_PROCESS = re.compile(r"process (\d+):")
_FRAME = re.compile(r"(?P<function>.+) \((?P<path>[^()]*?)(:\d+)?\)$")
_ROOT = re.compile(r"site-packages/|lib/python3\.\d+/|include/")


class Stack(NamedTuple):
    """What was seen together."""

    pid: int
    frames: list[str]
    """The caller first: ``function (path:line)``."""
    samples: int


def main() -> None:
    with running() as bench, tempfile.TemporaryDirectory() as folder:
        sender = Sender(bench, World(1), Load("spied", TIMES, WARM_S + SPIED_S + SPARE_S))
        sender.start()
        time.sleep(WARM_S)
        seen = dict(_spied(bench, Path(folder)))
        sender.join()
        assert sender.problem is None, sender.problem
    text = [f"{where()}: {TIMES:g} times the reference load, {SPIED_S} s, {RATE} looks a second"]
    for service, stacks in seen.items():
        text += ["", *_told(service, stacks)]
    (report.FOLDER / "profiles-platform.txt").write_text("\n".join(text) + "\n", encoding="utf-8")


def _spied(bench: Bench, folder: Path) -> Iterator[tuple[str, list[Stack]]]:
    """Yield the stacks of each service of Python, of the scheduler's tasks apart from it."""
    status = read_status(bench.layout.state_file)
    assert status is not None
    pids = {name: status.service(name).pid for name in SERVICES if name != "postgres"}
    spies = {name: _spy(pid, folder / name) for name, pid in pids.items()}
    for name, spy in spies.items():
        assert spy.wait() == 0, f"py-spy could not look at {name}: {spy.communicate()[1]}"
        stacks = list(_stacks((folder / name).read_text(encoding="utf-8")))
        if name == "scheduler":
            yield name, [stack for stack in stacks if stack.pid == pids[name]]
            yield "tasks", [stack for stack in stacks if stack.pid != pids[name]]
        else:
            yield name, stacks


def _spy(pid: int, output: Path) -> subprocess.Popen[str]:
    spy, options = (
        Path(sys.executable).with_name("py-spy"),
        "record --subprocesses --nonblocking --format raw",
    )
    words = [
        str(spy),
        *options.split(),
        f"--rate={RATE}",
        f"--duration={SPIED_S}",
        f"--pid={pid}",
        f"--output={output}",
    ]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _stacks(raw: str) -> Iterator[Stack]:
    for line in raw.splitlines():
        text, _, samples = line.rpartition(" ")
        process, *frames = text.split(";")
        if found := _PROCESS.match(process):
            # Of a child all its parents are named first.
            pids = [int(found[1]), *(int(one[1]) for frame in frames if (one := _PROCESS.match(frame)))]
            yield Stack(pids[-1], [frame for frame in frames if not _PROCESS.match(frame)], int(samples))


def _told(service: str, stacks: list[Stack]) -> Iterator[str]:
    total = sum(stack.samples for stack in stacks)
    yield f"{service}: {total:,} stacks"
    own: Counter[str] = Counter()
    within: Counter[str | None] = Counter()
    for stack in stacks:
        if stack.frames:
            own[_function(stack.frames[-1])] += stack.samples
        for package in {_package(frame) for frame in stack.frames} - {None}:
            within[package] += stack.samples
    yield "  within: " + ", ".join(f"{name} {share}" for name, share in _shares(within, total, PARTS))
    yield from (f"  {share:>5}  {name}" for name, share in _shares(own, total, FUNCTIONS))


def _shares(counts: Counter[Any], total: int, most: int) -> list[tuple[str, str]]:
    return [(name, f"{count / total:.0%}") for name, count in counts.most_common(most)]


def _function(frame: str) -> str:
    """Return which function a frame is of, without the line.

    >>> _function("loads (/venv/lib/python3.11/site-packages/orjson/x.py:12)")
    'loads (orjson/x.py)'
    """
    found = _FRAME.match(frame)
    return f"{found['function']} ({_short(found['path'])})" if found else frame


def _package(frame: str) -> str | None:
    """Return whose code a frame is; None: nobody wrote it.

    >>> _package("loads (/venv/lib/python3.11/site-packages/orjson/x.py:12)"), _package("run (threading.py:3)")
    ('orjson', 'threading')
    """
    found = _FRAME.match(frame)
    path = _short(found["path"] if found else frame)
    return None if "<" in path else path.split("/")[0].removesuffix(".py")


def _short(path: str) -> str:
    return _ROOT.split(path)[-1]


if __name__ == "__main__":
    main()
