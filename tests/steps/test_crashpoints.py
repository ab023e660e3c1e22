"""Points at which the chaos suite kills."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from asyncstageout.steps import crashpoints
from asyncstageout.steps.crashpoints import CONTROL_FILE, POINTS, reached

STEPS = Path(crashpoints.__file__).parent
VISIT = "import sys; from asyncstageout.steps.crashpoints import reached; reached(sys.argv[1])"


def visit(point: str, control_file: Path) -> int:
    """Come by a point in a process of its own, and return how that ended."""
    done = subprocess.run(
        [sys.executable, "-c", VISIT, point], env={CONTROL_FILE: str(control_file)}, check=False
    )
    return done.returncode


def test_it_kills_at_the_wished_visit_and_only_once(tmp_path: Path) -> None:
    control_file = tmp_path / "crash"
    control_file.write_text("group.after_commit:2\nsubmit.after_post:7\n")
    assert visit("submit.before_post", control_file) == 0
    assert visit("group.after_commit", control_file) == 0
    assert visit("group.after_commit", control_file) == -signal.SIGKILL
    assert visit("group.after_commit", control_file) == 0
    assert control_file.read_text() == "submit.after_post:7\n"


@pytest.mark.parametrize("control_file", [None, "no/such/file"])
def test_nobody_dies_unless_asked(control_file: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CONTROL_FILE, raising=False)
    if control_file:
        monkeypatch.setenv(CONTROL_FILE, control_file)
    for point in POINTS:
        reached(point)


def test_every_point_stands_in_the_code_once() -> None:
    source = "".join(path.read_text() for path in STEPS.glob("*.py"))
    assert {point: source.count(f'reached("{point}")') for point in POINTS} == dict.fromkeys(POINTS, 1)
