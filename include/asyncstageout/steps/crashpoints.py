"""Named points between two effects, at which the chaos suite has a process killed. Nobody else ever is.

``ASO_CRASH_AT`` names a control file with a line for each wish: ``submit.after_post``, or
``submit.after_post:3`` for the third time that any process comes by. A wish is taken back before it is
granted, so that it kills once, whatever starts again. Without the variable a point costs a look into the
environment (about a microsecond).
"""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

CONTROL_FILE = "ASO_CRASH_AT"

POINTS = (
    "collect.before_commit",
    "collect.after_commit",
    "group.before_intent",
    "group.after_intent",
    "group.after_commit",
    "submit.after_mark",
    "submit.before_post",
    "submit.after_post",
    "submit.after_commit",
    "submit.before_release",
    "submit.after_release",
    "sense.after_fetch",
    "sense.after_stage",
    "update.before_commit",
    "update.after_commit",
    "reconcile.before_repair",
    "reconcile.after_repair",
    "assemble.before_commit",
    "assemble.after_commit",
    "publish.after_lease",
    "publish.before_post",
    "publish.after_post",
    "publish.after_commit",
    "publish.after_settle",
    "migrate.after_intent",
    "migrate.after_submit",
    "cancel.before_telling",
    "cancel.after_telling",
    "deliver.before_send",
    "deliver.after_send",
    "deliver.after_record",
    "clean.after_claim",
    "clean.after_delete",
    "clean.after_settle",
    "sweep.after_intent",
    "sweep.after_delete",
    "alerts.before_commit",
    "alerts.after_send",
)
"""Every point there is; a test holds the code to it."""


def reached(point: str) -> None:
    """Die here, as ``kill -9`` does it, if the control file says so."""
    control_file = os.environ.get(CONTROL_FILE)
    if control_file and _is_due(Path(control_file), point):
        os.kill(os.getpid(), signal.SIGKILL)


def _is_due(control_file: Path, point: str) -> bool:
    """Count this visit; say whether it is the one, and then forget the wish."""
    try:
        stream = control_file.open("r+")
    except FileNotFoundError:
        return False
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        wishes = dict(_wish(line) for line in stream.read().split())
        if point not in wishes:
            return False
        wishes[point] -= 1
        is_due = wishes[point] <= 0
        if is_due:
            del wishes[point]
        stream.seek(0)
        stream.truncate()
        stream.writelines(f"{name}:{visits}\n" for name, visits in wishes.items())
        return is_due


def _wish(line: str) -> tuple[str, int]:
    """Return the point and at which visit to die.

    >>> _wish("submit.after_post:3"), _wish("submit.after_post")
    (('submit.after_post', 3), ('submit.after_post', 1))
    """
    point, _, visits = line.partition(":")
    return point, int(visits or 1)
