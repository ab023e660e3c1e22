"""A sweep finds what no file of ours needs in a temporary area, and deletes only what it may."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from asyncstageout.catalogue.cleaning import take_site
from asyncstageout.catalogue.restrictions import Area, restrict
from asyncstageout.catalogue.storages import put_sites
from asyncstageout.catalogue.sweeps import sweep_views, swept_areas
from asyncstageout.core.restrictions import Mode
from asyncstageout.core.states import TransferState
from asyncstageout.core.temporary_names import NotTemporary
from asyncstageout.sandbox.faults import FaultPlan, SiteFault
from asyncstageout.steps import sweep as sweep_module
from asyncstageout.steps.recording import Summary
from asyncstageout.steps.sweep import SweepStopped, sweep
from fixtures.catalogue import record
from fixtures.cleaning import Temp

BARI = "T2_IT_Bari"
OLD = timedelta(days=40)
ALICES, BOBS = "/store/temp/user/alice.abc", "/store/temp/user/bob.def"


def go(temp: Temp, **options: Any) -> Summary:
    return sweep(temp.conn, temp.deleting, site=BARI, step_run=temp.step, **options)


def put(temp: Temp, lfn: str, *, age: timedelta = OLD, size_bytes: int = 10) -> Path:
    return temp.put({"source": BARI, "source_lfn": lfn}, age=age, content=b"x" * size_bytes)


@pytest.fixture
def area(temp: Temp) -> dict[str, Path]:
    """Of each kind of file one."""
    live, done, failed = (record(number) for number in (1, 2, 3))
    temp.finished(failed, state=TransferState.FAILED)
    temp.finished(done)
    temp.delete()  # the copy of the file that is done is deleted; somebody writes it again
    temp.add(live)
    return {
        "live": temp.put(live, age=OLD),
        "done": temp.put(done, age=OLD),
        "failed": temp.put(failed, age=OLD),
        "young": put(temp, f"{ALICES}/mc/young.root", age=timedelta(days=29)),
        "old": put(temp, f"{BOBS}/run/0000/log/old.root", age=timedelta(days=31)),
        "group": put(temp, "/store/temp/group/higgs/old.root"),
        "elsewhere": put(temp, "/store/user/alice/mc/old.root"),
        "odd": put(temp, f"{BOBS}/a name.root"),
    }


def test_it_counts_what_nobody_needs_and_deletes_nothing(temp: Temp, area: dict[str, Path]) -> None:
    summary = go(temp)
    assert summary.sentence == (
        "T2_IT_Bari: 7 files, 3.0 kB, in 3 areas; 3 orphans older than 30 days, 1.0 kB"
    )
    assert all(path.exists() for path in area.values())
    (view,) = sweep_views(temp.conn)
    assert (view.visited, view.closed, view.left, view.ended_at is not None) == (9, 0, 0, True)
    found = {one.area: (one.files, one.orphans) for one in swept_areas(temp.conn, BARI)}
    assert found == {ALICES: (4, 1), BOBS: (2, 1), "/store/temp/group/higgs": (1, 1)}
    assert set(temp.deleting.asked) == {"PROPFIND", "DELETE"}
    assert temp.deleting.asked["DELETE"] == 1, "that of the cleaning"


def test_it_deletes_orphans_when_told_to_and_writes_that_down_first(
    temp: Temp, area: dict[str, Path]
) -> None:
    intended: list[tuple[int]] = []
    asked = "SELECT count(*) FROM orphan_deletion WHERE outcome IS NULL"
    temp.deleting.on_delete = lambda _url: intended.extend(temp.conn.execute(asked).fetchall())
    summary = go(temp, delete=2)
    assert "deleted 2 files" in summary.sentence
    assert intended == [(1,), (1,)], "each before it goes"
    left = {name for name, path in area.items() if path.exists()}
    assert len(left & {"done", "old", "group"}) == 1
    assert left - {"done", "old", "group"} == {"live", "failed", "young", "elsewhere", "odd"}
    rows = temp.conn.execute("SELECT outcome, count(*) FROM orphan_deletion GROUP BY 1").fetchall()
    assert rows == [("DELETED", 2)]
    assert "deleted 1 file" in go(temp, delete=2).sentence
    assert go(temp, delete=2).counts["orphans"] == 0
    assert {name for name, path in area.items() if path.exists()} == {
        "live",
        "failed",
        "young",
        "elsewhere",
        "odd",
    }


def test_it_goes_on_where_it_stopped(temp: Temp) -> None:
    for number in range(12):
        put(temp, f"/store/temp/user/user{number}.abc/mc/old.root")
    sentences = []
    while not sentences or "not over" in sentences[-1]:
        sentences.append(go(temp, requests=7).sentence)
        assert len(sentences) < 10
    assert temp.deleting.asked == {"PROPFIND": 2 + 12 + 12}, "each directory is looked at once"
    assert "12 files, 120 B, in 12 areas; 12 orphans" in sentences[-1]
    go(temp, requests=1)
    assert "0 files" in go(temp, requests=1, older_than_days=31).sentence, "of another age: it begins anew"


def test_a_death_between_intent_and_record_is_seen(temp: Temp, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(temp, f"{ALICES}/mc/old.root")

    class Died(BaseException):
        pass

    def die(point: str) -> None:
        if point == "sweep.after_delete":
            raise Died

    with monkeypatch.context() as death:
        death.setattr(sweep_module, "reached", die)
        with pytest.raises(Died):
            go(temp, delete=5)
    assert not path.exists()
    assert temp.conn.execute("SELECT source_lfn, outcome FROM orphan_deletion").fetchall() == [
        (f"{ALICES}/mc/old.root", None)
    ]
    assert "0 files" in go(temp, delete=5).sentence


def test_what_is_closed_is_counted_and_what_is_silent_stops_it(temp: Temp) -> None:
    put(temp, f"{ALICES}/mc/old.root")
    put(temp, f"{BOBS}/mc/old.root")
    temp.sites.storage.faults.replace(FaultPlan(sites=(SiteFault(path="bob.def", status=403),)))
    assert "1 orphans older than 30 days, 10 B; 1 directories are closed to us" in go(temp).sentence
    temp.sites.storage.faults.replace(FaultPlan(sites=(SiteFault(path="bob.def", status=0, count=1),)))
    with pytest.raises(SweepStopped, match="the sweep of T2_IT_Bari stopped: t2-it-bari"):
        go(temp)
    assert "2 orphans" in go(temp).sentence


def test_a_site_that_must_be_left_alone(temp: Temp) -> None:
    take_site(temp.conn, BARI, step_run=temp.step + 1, lease_s=60)
    with pytest.raises(SweepStopped, match="another step is at work"):
        go(temp)
    restrict(temp.conn, Mode.BAN, Area(site=BARI), reason="raid", by="maria")
    with pytest.raises(SweepStopped, match="banned by maria: raid"):
        go(temp)
    put_sites(temp.conn, {"T2_XX_Srm": "srm://se.test/x"}, "test")
    for site in ("T2_XX_Srm", "T2_XX_Nowhere"):
        with pytest.raises(NotTemporary):
            sweep(temp.conn, temp.deleting, site=site, step_run=temp.step)
