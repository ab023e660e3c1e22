"""A publisher dies before and after each of its effects: the next one goes on, and each file is in DBS once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from asyncstageout.catalogue.audit import audit
from asyncstageout.catalogue.publication import set_publication
from asyncstageout.sandbox.tls import client_certificate
from asyncstageout.steps.crashpoints import POINTS
from fixtures.publication import Press, lfn
from sandbox.harness import HOST, certificates

TESTS = Path(__file__).parents[1]
TASK = "261122_alice_task"
PUBLISHING = [point for point in POINTS if point.split(".")[0] in ("assemble", "publish", "migrate")]
KILLED = "-9"


class Publisher:
    """The process of :mod:`chaos.publisher`."""

    def __init__(self, press: Press, catalogue_url: str, tls_folder: Path) -> None:
        tls, pair = certificates(tls_folder), client_certificate(tls_folder, "host", HOST)
        options = {
            "catalogue": catalogue_url,
            "dbs": press.instances.client("dbs_default").writer_url.removesuffix("/phys03/DBSWriter"),
            "ca": str(tls.ca),
            "cert": str(pair.cert),
            "key": str(pair.key),
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self._press = press
        self._process = subprocess.Popen(
            [sys.executable, "-m", "chaos.publisher", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=TESTS,
        )  # fmt: skip

    def run(self, control_file: Path | None = None) -> str:
        """Let one run come and go, with everything due; return how it ended."""
        self._press.make_due()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{control_file or ''}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def stop(self) -> None:
        self._process.communicate()


@pytest.fixture
def publisher(press: Press, catalogue_url: str, tls_folder: Path) -> Iterator[Publisher]:
    made = Publisher(press, catalogue_url, tls_folder)
    yield made
    made.stop()


def test_a_publisher_is_killed_between_two_effects(
    press: Press, publisher: Publisher, tmp_path: Path
) -> None:
    """A31, and a file is never in DBS twice, whatever was done already."""
    control_file = tmp_path / "crash"
    set_publication(press.conn, TASK, None, with_parents=True)
    for number, point in enumerate(PUBLISHING):
        # A task each; three files in blocks of two, and one that is refused alone.
        numbers = range(10 * number, 10 * number + 3)
        _arrive(press, number, numbers)
        control_file.write_text(f"{point}\n")
        ends = []
        while not ends or set(press.blocks()) & {"OPEN", "CLOSED"} or press.waiting():
            ends.append(publisher.run(control_file))
            assert len(ends) < 20, (point, ends)
        assert ends.count(KILLED) == 1, (point, ends)
        assert set(ends) == {KILLED, "0"}, (point, ends)
        assert control_file.read_text() == ""
        assert set(press.at_dbs(numbers)) == set(map(lfn, numbers)), point
    assert press.publications() == {"DONE": 3 * len(PUBLISHING)}
    assert {one.name: one.samples for one in audit(press.conn) if one.violations} == {}


def _arrive(press: Press, number: int, numbers: range) -> None:
    """Let files arrive whose parents are in the global DBS, and one of which DBS has already."""
    parent = 1000 + number
    press.insert(press.elsewhere, f"/Input/bob-raw-0a1b/USER#{uuid4()}", parent)
    press.insert(press.instances.client("dbs_default"), f"/Mc/alice-x-0a/USER#{uuid4()}", numbers[0])
    for each in numbers:
        press.ready(each, parents=[lfn(parent)])
    set_publication(press.conn, TASK, None, with_parents=True)
