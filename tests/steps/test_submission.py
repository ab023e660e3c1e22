"""Every answer to a submission: which files go, which fail, which wait, and how often FTS is asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from psycopg import Connection

from asyncstageout.catalogue.policies import put_policy
from asyncstageout.clients.delegation import CannotDelegate
from asyncstageout.clients.errors import (
    DestinationBusy,
    FTSError,
    NotAuthorised,
    ServerFault,
    SubmissionRefused,
    Unavailable,
    Unreachable,
)
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.core.fts import JobSubmission, destination_hash
from asyncstageout.sandbox.fts.service import Options
from asyncstageout.sandbox.tls import client_certificate
from asyncstageout.steps.submit import submit
from asyncstageout.steps.summarise import CycleIncomplete
from fixtures.catalogue import Add, assert_audited, record, states
from fixtures.cycles import IMPATIENT, House, jobs_at_fts
from sandbox.harness import ALICE, bench, caller, certificates

Judge = Callable[[JobSubmission], FTSError | None]


class Counted:
    """Stands before the client: counts POSTs of jobs, and refuses as a test says."""

    def __init__(self, house: House, judge: Judge = lambda _: None) -> None:
        self.posts = 0
        self._submit, self._judge = house.client.submit, judge
        house.client.submit = self  # type: ignore[assignment,method-assign]

    def __call__(self, submission: JobSubmission) -> UUID:
        self.posts += 1
        if problem := self._judge(submission):
            raise problem
        return self._submit(submission)


def bad_files(*ids: int, error: type[FTSError] = SubmissionRefused) -> Judge:
    """Refuse jobs with one of these files, in words that name the first of them, as FTS does."""

    def judge(submission: JobSubmission) -> FTSError | None:
        found = [file for file in submission.files if file.transfer_id in ids]
        return error("fts", "POST /jobs", 400, f"Missing path ({found[0].dest_url})") if found else None

    return judge


def plan_files(house: House, add: Add, count: int, run_id: str = "run") -> list[int]:
    add(*(record(number) for number in range(count)))
    house.collect(run_id)
    house.group(run_id)
    return [row[0] for row in house.conn.execute("SELECT id FROM transfer ORDER BY id")]


def waits(conn: Connection) -> list[str]:
    """The reasons for which files went back to NEW."""
    rows = conn.execute(
        "SELECT DISTINCT reason FROM transfer_event WHERE from_state = 'ACQUIRED' AND to_state = 'NEW'"
    )
    return [row[0] for row in rows]


def attempts(conn: Connection) -> Counter[int]:
    return Counter(row[0] for row in conn.execute("SELECT attempt FROM transfer"))


@pytest.mark.parametrize("place", [0, 77, 199])
def test_one_bad_file_in_200_costs_log_n_posts(house: House, add: Add, place: int) -> None:
    """A6: FTS's refusal names no file; 199 go, one fails with FTS's words."""
    ids = plan_files(house, add, 200)
    counted = Counted(house, bad_files(ids[place]))
    house.submit()
    assert states(house.conn) == {"SUBMITTED": 199, "FAILED": 1}
    assert counted.posts <= 17, "2 log2 200 + 1"
    rows = house.conn.execute(
        "SELECT id, failure_category, attempt FROM transfer WHERE state = 'FAILED'"
    ).fetchall()
    assert rows == [(ids[place], "refused", 0)]
    assert_audited(house.conn)


def test_several_bad_files_are_all_found(house: House, add: Add) -> None:
    ids = plan_files(house, add, 64)
    Counted(house, bad_files(ids[0], ids[1], ids[40]))
    house.submit()
    assert states(house.conn) == {"SUBMITTED": 61, "FAILED": 3}
    assert_audited(house.conn)


def test_a_job_whose_parameters_fts_refuses_fails_no_file(house: House, add: Add) -> None:
    """FTS refuses every part alike: that is shown by log n POSTs, and the files wait for a person."""
    ids = plan_files(house, add, 200)
    counted = Counted(house, bad_files(*ids))
    assert house.submit().counts["released_files"] == 200
    assert states(house.conn) == {"NEW": 200}
    assert counted.posts <= 17
    (reason,) = {why.split("(")[0] for why in waits(house.conn)}
    assert reason.startswith("FTS refuses every job on this link: fts: POST /jobs answered 400: Missing path")
    assert attempts(house.conn) == {0: 200}
    house.conn.execute("UPDATE transfer SET due_at = now()")
    del house.client.submit  # mended
    house.run_cycle("later")
    assert states(house.conn) == {"SUBMITTED": 200}
    assert_audited(house.conn)


def test_a_file_alone_waits_as_long_as_fts_took_nothing_on_its_link(house: House, add: Add) -> None:
    (only,) = plan_files(house, add, 1)
    counted = Counted(house, bad_files(only))
    house.submit()
    assert states(house.conn) == {"NEW": 1}
    # A day later nobody has mended anything, so it is the file.
    house.conn.execute("UPDATE transfer SET due_at = now(), created_at = now() - interval '25 hours'")
    house.run_cycle("next day")
    assert states(house.conn) == {"FAILED": 1}
    assert counted.posts == 2
    assert_audited(house.conn)


def test_a_file_alone_fails_where_fts_took_others(house: House, add: Add) -> None:
    add(record(100))
    house.run_cycle("before")
    ids = plan_files(house, add, 1)
    Counted(house, bad_files(ids[-1]))
    house.submit()
    assert states(house.conn) == {"SUBMITTED": 1, "FAILED": 1}


def test_a_busy_destination_is_taken_out_by_its_name(house: House, add: Add) -> None:
    """A5: 409 for one of 200; the others go in one more POST, the file waits and uses no attempt."""
    ids = plan_files(house, add, 200)
    busy = house.conn.execute(
        "SELECT (v.body->'protocols'->0->>'prefix') || destination_lfn FROM transfer t"
        " JOIN site s ON name = destination JOIN storage v ON v.id = s.storage_id WHERE t.id = %s",
        (ids[50],),
    ).fetchone()
    assert busy is not None

    def judge(submission: JobSubmission) -> FTSError | None:
        taken = any(file.dest_url == busy[0] for file in submission.files)
        return (
            DestinationBusy("fts", "POST /jobs", 409, "duplicated", destination_hash(busy[0]))
            if taken
            else None
        )

    counted = Counted(house, judge)
    house.submit()
    assert states(house.conn) == {"SUBMITTED": 199, "NEW": 1}
    assert counted.posts == 2
    assert waits(house.conn) == ["another transfer was writing to the destination; it has ended meanwhile"]
    assert_audited(house.conn)


def test_the_reason_says_when_it_is_our_own_earlier_job(house: House, add: Add) -> None:
    plan_files(house, add, 1)
    house.submit()
    (job,) = jobs_at_fts(house)
    house.conn.execute("UPDATE fts_job SET state = 'ENDED'")
    house.conn.execute("UPDATE transfer SET state = 'RETRY', due_at = now() - interval '1 s'")
    house.collect("again")
    house.group("again")
    found = house.client.active_file_by_destination(job.files[0].dest_surl)
    assert found is not None
    Counted(
        house,
        lambda s: DestinationBusy(
            "fts", "POST /jobs", 409, "duplicated", destination_hash(s.files[0].dest_url)
        ),
    )
    house.submit("again")
    assert waits(house.conn) == [f"our own earlier FTS job {job.job_id} is still writing to the destination"]
    assert attempts(house.conn) == {1: 1}


def test_a_fault_of_fts_on_one_file_makes_only_that_one_wait(house: House, add: Add) -> None:
    ids = plan_files(house, add, 50)
    Counted(house, bad_files(ids[7], error=ServerFault))
    house.submit()
    assert states(house.conn) == {"SUBMITTED": 49, "NEW": 1}
    assert_audited(house.conn)


def test_a_banned_storage_is_asked_about_once(house: House, add: Add) -> None:
    """A7: no storm of POSTs for a storage that FTS does not serve."""
    put_policy(house.conn, None, None, {"files_per_job": 1}, "test")
    house.fts.ask(
        "host", "POST", "/ban/se", {"storage": "davs://t2-ch-cern.sandbox.test", "status": "cancel"}
    )
    ids = plan_files(house, add, 20)
    counted = Counted(house)
    submit(
        house.conn, house.clients, cycle_id=house.cycle().cycle_id, shard=0, step_run=house.step, threads=1
    )
    assert states(house.conn) == {"NEW": len(ids)}
    assert counted.posts == 1
    assert attempts(house.conn) == {0: 20}


def test_a_job_that_fts_took_before_the_ban_is_not_submitted_twice(house: House, add: Add) -> None:
    """The first POST's answer was lost; the second meets a ban, which FTS looks at before the sid."""
    plan_files(house, add, 3)
    house.set_faults(api=[{"action": "lost_reply", "method": "POST", "path": "/jobs", "count": 1}])
    with pytest.raises(FTSError):
        house.submit()
    house.fts.ask("host", "POST", "/ban/se", {"storage": "davs://t2-ch-cern.sandbox.test", "status": "wait"})
    house.submit()
    assert states(house.conn) == {"SUBMITTED": 3}
    assert len(jobs_at_fts(house)) == 1
    assert_audited(house.conn)


def holds_of(conn: Connection) -> list[tuple[str, str, float]]:
    return conn.execute(
        "SELECT fts_server, identity, round(extract(epoch FROM retry_at - now()) / 60) FROM identity_hold"
    ).fetchall()


def test_who_is_not_let_in_waits_and_is_asked_again(house: House, add: Add) -> None:
    """401 and 403 for us: one red task, then quiet until it is time to ask again; no attempt is used."""
    plan_files(house, add, 3)
    certificate = house.client._caller.session.cert
    house.client._caller.session.cert = None
    with pytest.raises(NotAuthorised):
        house.submit()
    assert holds_of(house.conn) == [("fts", "service", 5)]
    assert states(house.conn) == {"NEW": 3}, "FTS has certainly taken nothing"
    assert "of no VO" in waits(house.conn)[0]
    house.summarise()

    # While the hold lasts: nothing is taken, nothing is red.
    add(record(50))
    counted = Counted(house)
    summary = house.run_cycle("held")
    assert summary.counts["files"] == 0
    assert "fts has not let service in since" in summary.sentence
    assert counted.posts == 0

    # Its time is over and the credential is not mended: red once more, held once more.
    house.conn.execute("UPDATE identity_hold SET retry_at = now()")
    with pytest.raises(NotAuthorised):
        house.run_cycle("still barred")
    assert holds_of(house.conn) == [("fts", "service", 5)]

    house.client._caller.session.cert = certificate
    house.conn.execute("UPDATE identity_hold SET retry_at = now()")
    house.run_cycle("let in")
    assert holds_of(house.conn) == []
    assert states(house.conn) == {"SUBMITTED": 4}
    assert attempts(house.conn) == {1: 4}
    assert_audited(house.conn)


def test_a_job_in_doubt_stays_also_when_fts_does_not_let_us_in(house: House, add: Add) -> None:
    """The POST before may have arrived, whatever FTS says to this one."""
    plan_files(house, add, 3)
    house.set_faults(api=[{"action": "lost_reply", "method": "POST", "path": "/jobs", "count": 1}])
    with pytest.raises(Unreachable):
        house.submit()
    certificate = house.client._caller.session.cert
    house.client._caller.session.cert = None
    with pytest.raises(NotAuthorised):
        house.submit()
    assert states(house.conn) == {"ACQUIRED": 3}
    with pytest.raises(CycleIncomplete):
        house.summarise()
    house.client._caller.session.cert = certificate
    house.submit()
    assert holds_of(house.conn) == []
    assert states(house.conn) == {"SUBMITTED": 3}
    assert len(jobs_at_fts(house)) == 1


def test_an_fts_that_is_down_holds_nobody(house: House, add: Add) -> None:
    plan_files(house, add, 1)
    house.set_faults(api=[{"action": "status", "status": 503, "path": "/jobs", "count": 1}])
    with pytest.raises(Unavailable):
        house.submit()
    assert holds_of(house.conn) == []


@pytest.fixture
def strict_house(conn: Connection, step: int, tls_folder: Path, tmp_path: Path) -> Iterator[House]:
    """As ``house``, with an FTS that wants a delegated proxy."""
    tls = certificates(tls_folder)
    options = Options(state=tmp_path, with_bytes=False, require_delegation=True)
    with bench(tls, tls_folder, options) as fts:
        # The proxy's life is measured by the real clock.
        fts.clock.now_s = datetime.now(UTC).timestamp()
        session = caller(tls, client_certificate(tls_folder, "alice", ALICE))
        with FTS3Client(fts.url, session, patience=IMPATIENT) as client:
            yield House(conn, client, fts, step)


def asked(house: House) -> list[str]:
    """Record the requests that the client sends from now on."""
    seen: list[str] = []
    whole = house.client.ask

    def ask(method: str, path: str, **options: object) -> object:
        seen.append(f"{method} {path}")
        return whole(method, path, **options)  # type: ignore[arg-type]

    house.client.ask = ask  # type: ignore[assignment,method-assign]
    return seen


def test_a_proxy_is_delegated_once_when_fts_wants_one(strict_house: House, add: Add) -> None:
    """A8: 419, a proxy, the POST again; the other threads' jobs need no second one."""
    put_policy(strict_house.conn, None, None, {"files_per_job": 2}, "test")
    plan_files(strict_house, add, 12)
    seen = asked(strict_house)
    strict_house.submit()
    assert states(strict_house.conn) == {"SUBMITTED": 12}
    puts = [request for request in seen if request.startswith("PUT /delegation/")]
    assert len(puts) == 1
    assert holds_of(strict_house.conn) == []
    assert_audited(strict_house.conn)


def test_a_proxy_that_ends_within_the_hour_is_renewed(strict_house: House, add: Add) -> None:
    plan_files(strict_house, add, 1)
    strict_house.submit()
    ends = strict_house.fts.fts.delegations._ends
    ends.update(dict.fromkeys(ends, strict_house.fts.clock.now_s + 1800))
    ids = plan_files(strict_house, add, 2, "later")
    strict_house.submit("later")
    assert states(strict_house.conn) == {"SUBMITTED": len(ids)}


def test_who_cannot_delegate_is_held(
    strict_house: House, add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_files(strict_house, add, 2)
    cert, _ = strict_house.client.certificate or ("", None)
    garbage = tmp_path / "garbage.key"
    garbage.write_text("no key")
    monkeypatch.setattr(FTS3Client, "certificate", (cert, str(garbage)))
    with pytest.raises(CannotDelegate, match="Check the certificate and key"):
        strict_house.submit()
    assert holds_of(strict_house.conn) == [("fts", "service", 5)]
    assert attempts(strict_house.conn) == {0: 2}
