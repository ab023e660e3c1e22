"""Temporary copies are deleted once their file has ended, and nothing else ever is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asyncstageout.catalogue.audit import audit
from asyncstageout.catalogue.cleaning import take_site
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.policies import put_policy
from asyncstageout.catalogue.restrictions import Area, restrict
from asyncstageout.catalogue.storages import put_sites, put_storages
from asyncstageout.clients.credentials.model import CredentialMissing
from asyncstageout.core.cleaning import WAITS, Trouble
from asyncstageout.core.identities import Identity
from asyncstageout.core.restrictions import Mode
from asyncstageout.core.states import TransferState
from asyncstageout.core.storages.tfc import read_tfc
from asyncstageout.sandbox.faults import FaultPlan, SiteFault
from asyncstageout.steps import clean, deleting
from asyncstageout.steps.deleting import IN_A_ROW, Pace
from fixtures.catalogue import record
from fixtures.cleaning import Temp, outcomes, queue

S = TransferState
BARI, KIT, MIT = "T2_IT_Bari", "T1_DE_KIT", "T2_US_MIT"


def many(count: int, start: int = 0, **changes: Any) -> list[dict[str, Any]]:
    return [record(number, **changes) for number in range(start, start + count)]


def reasons(temp: Temp) -> list[tuple[str, str | None]]:
    """Return (outcome, why) of each deletion that has come to an end."""
    return temp.conn.execute(
        "SELECT to_state, reason FROM file_event WHERE kind = 'cleaning' ORDER BY transfer_id, id"
    ).fetchall()


def waiting(temp: Temp) -> list[tuple[Any, ...]]:
    return temp.conn.execute("SELECT state, tries, reason FROM cleaning ORDER BY transfer_id").fetchall()


def be(temp: Temp, *faults: SiteFault) -> None:
    temp.sites.storage.faults.replace(FaultPlan(sites=faults))


def assert_sound(temp: Temp) -> None:
    assert {one.name: one.samples for one in audit(temp.conn) if one.violations} == {}


# --- what goes, and what stays ---


def test_copies_of_done_files_are_deleted(temp: Temp) -> None:
    paths = temp.finished(*many(10))
    other = temp.put(record(50))
    summary = temp.delete()
    assert summary.sentence == "Deleted 10 temporary copies, 10.0 kB, at 5 sites; 0 were gone"
    assert not any(path.exists() for path in paths)
    assert other.exists()
    assert queue(temp.conn) == []
    assert outcomes(temp.conn) == {"DELETED": 10}
    assert temp.deleting.asked == {"PROPFIND": 1, "DELETE": 10}, "a directory is looked at once"
    assert temp.delete().counts["deleted"] == 0
    assert_sound(temp)


def test_what_is_gone_already_is_a_success(temp: Temp) -> None:
    first, *_ = temp.finished(*many(4))
    first.unlink()
    (lonely,) = temp.finished(record(9, source_lfn="/store/temp/user/alice.abc/other/out_9.root"))
    lonely.unlink()
    lonely.parent.rmdir()
    summary = temp.delete()
    assert summary.sentence == "Deleted 3 temporary copies, 3.0 kB, at 5 sites; 2 were gone"
    assert outcomes(temp.conn) == {"DELETED": 3, "GONE": 2}
    assert_sound(temp)


def test_a_newer_copy_of_the_same_name_stays(temp: Temp) -> None:
    """The job ran again and wrote its output anew; its request has not come yet."""
    paths = temp.finished(*many(4))
    for number, later in ((0, timedelta(seconds=5)), (1, timedelta(hours=1))):
        temp.put(record(number), age=-later)
    temp.delete()
    assert [path.exists() for path in paths] == [True, True, False, False]
    assert [reason[0] for reason in reasons(temp)] == ["LEFT", "LEFT", "DELETED", "DELETED"]
    assert "after the copy that was meant" in (reasons(temp)[0][1] or "")
    assert queue(temp.conn) == []
    assert_sound(temp)


def test_one_that_is_written_anew_between_look_and_deletion_stays(temp: Temp) -> None:
    (path,) = temp.finished(record(1))
    temp.deleting.on_delete = lambda _url: path.write_bytes(b"new")
    temp.delete()
    assert path.read_bytes() == b"new"
    assert reasons(temp) == [("LEFT", "it was written anew at this moment")]


def test_another_size_than_what_was_moved_stays(temp: Temp) -> None:
    temp.finished(record(1))
    path = temp.put(record(1), content=b"another")
    temp.delete()
    assert path.exists()
    assert reasons(temp) == [("LEFT", "it has 7 bytes, the file that was moved 1,001")]


@pytest.mark.parametrize("count", [1, 3], ids=["looked at alone", "looked at in its directory"])
def test_a_directory_of_that_name_stays(temp: Temp, count: int) -> None:
    paths = temp.finished(*many(count))
    paths[0].unlink()
    paths[0].mkdir()
    temp.delete()
    assert paths[0].is_dir()
    assert reasons(temp)[0] == ("LEFT", "it is a directory")


def test_only_what_has_a_safe_name_is_deleted(temp: Temp) -> None:
    """A description that leads temporary files and others to one place."""
    (path,) = temp.finished(record(1))
    tfc = '<lfn-to-pfn protocol="w" path-match="/+store/(temp/)?user/(.*)" result="davs://t2-it-bari.sandbox.test:8443/store/user/$2"/>'
    storage = read_tfc(f"<storage-mapping>{tfc}</storage-mapping>".encode(), BARI)
    put_storages(temp.conn, [(storage, "test")], "test")
    victim = temp.sites.put(BARI, "/store/user/alice.abc/mc/out_1.root", b"dear")
    temp.delete()
    assert path.exists()
    assert victim.exists()
    assert not temp.deleting.asked
    ((outcome, reason),) = reasons(temp)
    assert outcome == "FAILED"
    assert "does not lie in a directory of temporary files alone" in (reason or "")
    put_sites(temp.conn, {BARI: "davs://t2-it-bari.sandbox.test:8443"}, "test")
    temp.make_due()
    temp.delete()
    assert not path.exists(), "what was given up is tried again"
    assert_sound(temp)


# --- when ---


def test_failed_and_killed_files_wait_as_the_policy_says(temp: Temp) -> None:
    (failed,) = temp.finished(record(1), state=S.FAILED)
    (hers,) = temp.finished(record(2, username="bob"), state=S.FAILED)
    put_policy(temp.conn, None, None, {"clean_failed_after_h": 0}, "test", username="bob")
    temp.delete()
    assert failed.exists()
    assert not hers.exists()
    ((due_at,),) = temp.conn.execute("SELECT due_at FROM cleaning").fetchall()
    assert timedelta(hours=5) < due_at - datetime.now(UTC) < timedelta(hours=7)
    temp.pass_time(timedelta(days=7, minutes=1))
    temp.delete()
    assert not failed.exists()
    assert_sound(temp)


def test_what_is_to_be_published_waits_for_that(temp: Temp) -> None:
    path, other = temp.finished(*many(2))
    temp.conn.execute("UPDATE cleaning SET awaits_publication = true")
    put_policy(temp.conn, BARI, "T2_CH_CERN", {"clean_waits_for_publication": False}, "test")
    temp.delete(limit=1)
    assert [path.exists(), other.exists()] == [False, True]
    put_policy(temp.conn, BARI, "T2_CH_CERN", {"clean_waits_for_publication": True}, "test")
    temp.delete()
    assert other.exists()


def test_cleaning_can_be_switched_off(temp: Temp) -> None:
    paths = temp.finished(*many(3))
    put_policy(temp.conn, BARI, None, {"clean": False}, "test")
    temp.delete()
    assert all(path.exists() for path in paths)
    assert_sound(temp)


def test_one_user_and_a_limit(temp: Temp) -> None:
    paths = temp.finished(*many(4), *many(2, 10, username="bob"))
    assert temp.delete(username="bob").counts["deleted"] == 2
    assert temp.delete(limit=3).counts["deleted"] == 3
    assert sum(path.exists() for path in paths) == 1


# --- in whose name ---


def test_the_policy_says_in_whose_name(temp: Temp) -> None:
    temp.finished(record(1), record(2, username="bob"))
    put_policy(temp.conn, None, None, {"credential": "user"}, "test", username="bob")
    temp.delete()
    assert temp.deleting.identities == {"service": 1, "bob": 1}


def test_who_has_no_credential_waits_alone_and_uses_no_try(temp: Temp) -> None:
    mine, theirs = temp.finished(record(1), record(2, username="bob"))
    put_policy(temp.conn, None, None, {"credential": "user"}, "test")
    temp.deleting.without["alice"] = CredentialMissing(Identity("alice"), "no such file")
    temp.delete()
    assert [mine.exists(), theirs.exists()] == [True, False]
    assert waiting(temp) == [("WAITING", 0, "no credential for alice: no such file")]
    temp.deleting.without.clear()
    temp.make_due()
    temp.delete()
    assert not mine.exists()


# --- what goes wrong ---


def test_a_refusal_is_tried_again_and_then_given_up(temp: Temp) -> None:
    paths = temp.finished(*many(4))
    be(temp, SiteFault(method="DELETE", path="out_1.root", status=403))
    temp.delete()
    assert [path.exists() for path in paths] == [False, True, False, False]
    for tries in range(1, len(WAITS[Trouble.DENIED]) + 1):
        ((state, tried, reason),) = waiting(temp)
        assert (state, tried) == ("WAITING", tries)
        assert "answered 403" in reason
        temp.make_due()
        temp.delete()
    ((state, _, _),) = waiting(temp)
    assert state == "FAILED"
    assert outcomes(temp.conn) == {"DELETED": 3, "FAILED": 1}
    be(temp)
    temp.make_due()
    temp.delete()
    assert not paths[1].exists()
    assert outcomes(temp.conn) == {"DELETED": 4, "FAILED": 1}
    assert_sound(temp)


def test_where_a_directory_is_not_listed_its_files_are_looked_at(temp: Temp) -> None:
    paths = temp.finished(*many(3))
    be(temp, SiteFault(method="PROPFIND", status=403, count=1))
    temp.delete()
    assert not any(path.exists() for path in paths)
    assert temp.deleting.asked == {"PROPFIND": 4, "DELETE": 3}


def test_a_silent_storage_stops_alone_and_costs_no_try(temp: Temp) -> None:
    silent = temp.finished(*many(20))
    others = temp.finished(*many(3, 50, source=KIT))
    be(temp, SiteFault(site=BARI, status=0))
    summary = temp.delete()
    assert not any(path.exists() for path in others)
    assert f"{BARI}: t2-it-bari.sandbox.test:8443: PROPFIND" in summary.sentence
    assert "left alone until" in summary.sentence
    assert {row[:2] for row in waiting(temp)} == {("WAITING", 0)}
    row = temp.conn.execute(
        "SELECT paused_until > now(), pauses FROM cleaning_site WHERE failing_since IS NOT NULL"
    )
    assert row.fetchall() == [(True, 1)]
    be(temp)
    temp.delete()
    assert not any(path.exists() for path in silent)
    assert temp.conn.execute(
        "SELECT count(*) FROM cleaning_site WHERE failing_since IS NOT NULL"
    ).fetchone() == (0,)
    assert_sound(temp)


def test_a_storage_that_refuses_everything_is_asked_no_more(temp: Temp) -> None:
    temp.finished(*many(60))
    be(temp, SiteFault(method="DELETE", status=503))
    summary = temp.delete(threads=1)
    assert f"{IN_A_ROW} failures in a row" in summary.sentence
    assert temp.deleting.asked["DELETE"] == IN_A_ROW
    tried = [row[1] for row in waiting(temp)]
    assert (tried.count(1), tried.count(0)) == (IN_A_ROW, 60 - IN_A_ROW)


def test_a_ban_and_a_downtime_hold_a_site(temp: Temp) -> None:
    (path,) = temp.finished(record(1))
    restrict(temp.conn, Mode.BAN, Area(site=BARI), reason="raid", by="maria")
    assert f"{BARI}: banned by maria: raid" in temp.delete().sentence
    assert path.exists()


# --- beside others, and after a death ---


def test_two_steps_never_work_at_one_site(temp: Temp) -> None:
    temp.finished(*many(3), record(9, source=KIT))
    take_site(temp.conn, BARI, step_run=temp.step + 1, lease_s=60)
    summary = temp.delete()
    assert f"{BARI}: another step is at work there" in summary.sentence
    assert summary.counts["deleted"] == 1


class Died(BaseException):
    """The process is killed: nothing more of it runs."""


POINTS = ("clean.after_claim", "clean.after_delete", "clean.after_settle")


@pytest.mark.parametrize("point", POINTS)
def test_whatever_dies_the_next_run_goes_on(
    temp: Temp, catalogue_url: str, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    paths = temp.finished(*many(6))

    def die(reached: str) -> None:
        if reached == point:
            raise Died

    with monkeypatch.context() as death, connect(catalogue_url) as own:
        death.setattr(clean, "reached", die)
        with pytest.raises(Died):
            clean.delete(own, temp.deleting, sites=[BARI], step_run=temp.step)
    assert_sound(temp)
    assert "another step is at work" not in temp.delete().sentence, "the same step may go on"
    temp.conn.execute("UPDATE cleaning_site SET busy_until = now(), step_run = 0")
    temp.make_due()  # the claims of the dead end
    clean.delete(temp.conn, temp.deleting, sites=[BARI], step_run=temp.step + 1)
    assert not any(path.exists() for path in paths)
    assert queue(temp.conn) == []
    ends = temp.conn.execute(
        "SELECT transfer_id FROM file_event WHERE to_state IN ('DELETED', 'GONE')"
    ).fetchall()
    assert len(ends) == len(set(ends)) == 6
    assert_sound(temp)


def test_a_batch_that_takes_too_long_gives_the_rest_back(temp: Temp, monkeypatch: pytest.MonkeyPatch) -> None:
    temp.finished(*many(3))
    monkeypatch.setattr(clean, "BATCH_S", -1.0)
    temp.delete()
    assert waiting(temp) == [("WAITING", 0, None)] * 3
    assert not temp.deleting.asked


def test_an_old_look_is_not_trusted(temp: Temp, monkeypatch: pytest.MonkeyPatch) -> None:
    temp.finished(*many(5))
    monkeypatch.setattr(deleting, "LOOK_GOOD_S", -1.0)
    temp.delete()
    assert outcomes(temp.conn) == {"DELETED": 5}
    assert temp.deleting.asked == {"PROPFIND": 5, "DELETE": 5}, "three lists, then one by one"


# --- pace ---


def test_a_storage_is_asked_at_its_rate() -> None:
    now_s, slept = 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal now_s
        slept.append(round(seconds, 3))
        now_s += seconds

    pace = Pace(10, lambda: now_s, sleep)
    for _ in range(4):
        pace.wait()
    assert slept == [0.1, 0.1, 0.1]
    now_s += 5
    pace.wait()
    pace.wait()
    assert slept == [0.1, 0.1, 0.1, 0.1], "a rest is no credit"


def test_the_policy_of_the_source_sets_the_rate(temp: Temp, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    class Seen(Pace):
        def __init__(self, per_s: float) -> None:
            rates.append(per_s)
            super().__init__(per_s)

    monkeypatch.setattr(clean, "Pace", Seen)
    put_policy(temp.conn, BARI, None, {"deletes_per_s": 7}, "test")
    put_policy(temp.conn, BARI, None, {"deletes_per_s": 3}, "test", username="alice")
    temp.delete(BARI, KIT)
    assert sorted(rates) == [7, 50]
