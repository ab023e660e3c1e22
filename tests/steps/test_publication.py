"""From arrived files to DBS: every wanted file is there exactly once, whatever DBS answers."""

from __future__ import annotations

from fixtures.publication import DATASET, Press


def test_what_has_arrived_with_metadata_is_published(press: Press) -> None:
    press.ready(0, 1, 2)
    (summary,) = press.run()
    assert summary.sentence == "DBS took 1 blocks with 3 files"
    assert press.publications() == {"DONE": 3}
    (block,) = set(press.at_dbs().values())
    assert block.startswith(f"{DATASET}#")
    events = press.conn.execute(
        "SELECT from_state, to_state, subject, count(*) FROM file_event GROUP BY 1, 2, 3 ORDER BY 1 DESC"
    ).fetchall()
    assert events == [("NEW", "ACQUIRED", block, 3), ("ACQUIRED", "DONE", block, 3)]
    assert press.run() == []
