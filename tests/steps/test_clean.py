"""Temporary copies are deleted once their file has ended, and nothing else ever is."""

from __future__ import annotations

from asyncstageout.core.states import TransferState
from fixtures.catalogue import record
from fixtures.cleaning import Temp, outcomes, queue

S = TransferState


def test_copies_of_done_files_are_deleted(temp: Temp) -> None:
    paths = temp.finished(*(record(number) for number in range(10)))
    other = temp.put(record(50))
    summary = temp.delete()
    assert summary.sentence == "Deleted 10 temporary copies, 10.0 kB, at 5 sites; 0 were gone"
    assert not any(path.exists() for path in paths)
    assert other.exists()
    assert queue(temp.conn) == []
    assert outcomes(temp.conn) == {"DELETED": 10}
    assert temp.deleting.asked == {"PROPFIND": 1, "DELETE": 10}
    assert temp.delete().counts["deleted"] == 0
