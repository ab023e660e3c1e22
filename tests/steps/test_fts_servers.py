"""Several FTS servers, several identities: what stops one stops no other, and no file is at two of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.fts_servers import (
    HasOpenJobs,
    add_server,
    note_contact,
    remove_server,
    server_views,
    servers,
    set_state,
)
from asyncstageout.catalogue.identity_holds import holds
from asyncstageout.catalogue.jobs import adopt_orphans
from asyncstageout.catalogue.policies import put_policy
from asyncstageout.catalogue.unsent_jobs import mark, release_unsent, unmark
from asyncstageout.clients.credentials.model import CredentialExpired, CredentialMissing, FilePlaces
from asyncstageout.clients.errors import Unavailable, Unreachable
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.core.fts import JobSubmission
from asyncstageout.core.identities import Identity
from asyncstageout.sandbox.fts.service import Options
from asyncstageout.sandbox.layout import free_port
from asyncstageout.sandbox.tls import client_certificate
from asyncstageout.steps.reconcile import check, repair
from asyncstageout.steps.sense import Round, contact, look_everywhere
from asyncstageout.steps.submit import submit
from asyncstageout.steps.watching import ServerWatch
from fixtures.catalogue import Add, Plan, assert_audited, new_cycle, record, states
from fixtures.cycles import IMPATIENT, House
from sandbox.harness import ALICE, Bench, bench, caller, certificates


class Servers:
    """A house with two FTS servers: ``fts``, where all jobs are planned, and ``other``."""

    def __init__(self, house: House, other: Bench, client: FTS3Client, tls_folder: Path) -> None:
        self.house, self.other, self.other_client = house, other, client
        self._tls_folder = tls_folder
        self.clients, self.conn = house.clients, house.conn
        self.clients.by_server["other"] = client
        add_server(self.conn, "other", by="test")
        # Whatever the weights make of a link: the tests begin at "fts".
        set_state(self.conn, "other", "draining", reason=None, by="test")

    def open_other(self) -> None:
        set_state(self.conn, "other", "up", reason=None, by="test")

    def silence(self, name: str = "fts") -> None:
        """Nobody listens there any more."""
        tls = certificates(self._tls_folder)
        pair = client_certificate(self._tls_folder, "alice", ALICE)
        self.clients.by_server[name] = FTS3Client(
            f"https://127.0.0.1:{free_port()}", caller(tls, pair), patience=IMPATIENT, vo="testvo"
        )

    def answers_again(self) -> None:
        self.clients.by_server["fts"] = self.house.client
        contact(self.conn, self.house.client, fts_server="fts", now=datetime.now(UTC))

    def cycle(self, run_id: str) -> None:
        self.house.collect(run_id)
        _, shards = self.house.group(run_id)
        for shard in range(len(shards)):
            self.house.submit(run_id, shard)

    def reconcile(self) -> dict[str, int]:
        self.conn.execute(
            "UPDATE fts_job SET planned_at = planned_at - interval '61 s' WHERE state = 'PLANNED'"
        )
        counts = repair(self.conn, self.clients, step_run=self.house.step).counts
        return {name: count for name, count in counts.items() if count}

    def files_at(self, one: Bench) -> Counter[int]:
        """The files that an FTS was ever told of, by our number."""
        jobs = one.fts.call(lambda: list(one.fts.engine.jobs.values()))
        return Counter((file.file_metadata or {})["id"] for job in jobs for file in job.files)

    def assert_nothing_twice(self) -> None:
        everywhere = self.files_at(self.house.fts) + self.files_at(self.other)
        assert not {number: count for number, count in everywhere.items() if count > 1}
        assert_audited(self.conn)


@pytest.fixture
def two(house: House, tls_folder: Path, tmp_path: Path) -> Iterator[Servers]:
    tls = certificates(tls_folder)
    with bench(tls, tls_folder, Options(state=tmp_path / "other", with_bytes=False)) as other:
        session = caller(tls, client_certificate(tls_folder, "alice", ALICE))
        with FTS3Client(other.url, session, patience=IMPATIENT) as client:
            yield Servers(house, other, client, tls_folder)


def planned(two: Servers, add: Add, count: int = 6, **changes: Any) -> None:
    """Plan jobs of one file each, all for "fts"."""
    add(*(record(number, **changes) for number in range(count)))
    two.house.collect()
    two.house.group()


def one_file_each(conn: Connection) -> None:
    put_policy(conn, None, None, {"files_per_job": 1}, "test")


def server_of(conn: Connection) -> Counter[tuple[str, str]]:
    rows = conn.execute("SELECT fts_server, state::text FROM fts_job")
    return Counter((server, state) for server, state in rows)


# --- failing over ---


def test_what_was_certainly_not_sent_goes_to_another_server(two: Servers, add: Add) -> None:
    one_file_each(two.conn)
    planned(two, add)
    two.silence()
    two.open_other()
    summary = two.house.submit()
    assert summary.sentence.endswith("fts does not answer: 6 files go to another server"), (
        "and nothing is red"
    )
    assert states(two.conn) == {"NEW": 6}
    reasons = two.conn.execute(
        "SELECT DISTINCT reason FROM transfer_event WHERE to_state = 'NEW' AND from_state IS NOT NULL"
    )
    assert reasons.fetchall() == [("FTS server fts does not answer; goes to another",)]
    two.cycle("next")
    assert states(two.conn) == {"SUBMITTED": 6}
    assert len(two.files_at(two.other)) == 6
    assert {row[0] for row in two.conn.execute("SELECT attempt FROM transfer")} == {1}
    two.assert_nothing_twice()


def test_in_the_middle_of_a_shard_nothing_is_lost_and_nothing_is_twice(two: Servers, add: Add) -> None:
    """Some jobs were taken, one POST arrived and its answer was lost, then the server is gone."""
    one_file_each(two.conn)
    planned(two, add, 8)
    whole, posts = two.house.client.submit, []

    def dying(submission: JobSubmission) -> UUID:
        posts.append(submission)
        if len(posts) <= 3:
            return whole(submission)
        if len(posts) == 4:
            whole(submission)
            raise Unreachable("fts", "POST /jobs", detail="reset", maybe_delivered=True)
        raise Unreachable("fts", "POST /jobs", detail="refused", maybe_delivered=False)

    two.house.client.submit = dying  # type: ignore[method-assign]
    note_contact(two.conn, "fts", "silent", datetime.now(UTC) - timedelta(seconds=30))
    two.open_other()
    cycle_id = two.house.cycle().cycle_id
    with pytest.raises(Unreachable):
        submit(two.conn, two.clients, cycle_id=cycle_id, shard=0, step_run=two.house.step, threads=1)
    assert states(two.conn) == {"SUBMITTED": 3, "ACQUIRED": 1, "NEW": 4}
    two.cycle("next")
    assert states(two.conn) == {"SUBMITTED": 7, "ACQUIRED": 1}
    assert (len(two.files_at(two.house.fts)), len(two.files_at(two.other))) == (4, 4)

    # As long as its server is away, the job in doubt is left alone; then it is found there.
    assert "accepted_jobs" not in two.reconcile()
    assert adopt_orphans(two.conn, new_cycle(two.conn).cycle_id, 60) == 0, "no cycle turns red for it"
    del two.house.client.submit
    two.answers_again()
    assert two.reconcile()["accepted_jobs"] == 1
    assert states(two.conn) == {"SUBMITTED": 8}
    two.assert_nothing_twice()


def test_a_silence_of_a_moment_moves_nothing(two: Servers, add: Add) -> None:
    """One answer was lost: the rest goes to the same server a little later, and is not marked meanwhile."""
    one_file_each(two.conn)
    planned(two, add, 3)
    two.house.set_faults(api=[{"action": "status", "status": 503, "path": "/jobs", "count": 1}])
    cycle_id = two.house.cycle().cycle_id
    with pytest.raises(Unavailable):
        submit(two.conn, two.clients, cycle_id=cycle_id, shard=0, step_run=two.house.step, threads=1)
    assert states(two.conn) == {"ACQUIRED": 3}
    marks = two.conn.execute("SELECT count(*) FROM fts_job WHERE poster IS NOT NULL").fetchone()
    assert marks == (1,), "the one that was POSTed"
    two.house.submit()
    assert states(two.conn) == {"SUBMITTED": 3}
    two.assert_nothing_twice()


def test_a_job_that_an_earlier_run_posted_stays_with_its_server(two: Servers, add: Add) -> None:
    planned(two, add, 2)
    two.house.set_faults(api=[{"action": "lost_reply", "method": "POST", "path": "/jobs", "count": 1}])
    with pytest.raises(Unreachable):
        two.house.submit()
    two.silence()
    with pytest.raises(Unreachable):
        two.house.submit()
    assert states(two.conn) == {"ACQUIRED": 2}
    two.answers_again()
    assert two.reconcile() == {"accepted_jobs": 1}
    two.assert_nothing_twice()


def test_without_another_server_files_wait_and_say_why(two: Servers, add: Add) -> None:
    planned(two, add, 2)
    two.silence()
    two.house.submit()
    summary = two.house.run_cycle("next")
    assert summary.counts["files"] == 0
    assert "no FTS server is up: fts has not answered since" in summary.sentence
    assert "other is draining" in summary.sentence
    two.answers_again()
    two.house.run_cycle("later")
    assert states(two.conn) == {"SUBMITTED": 2}
    assert len(two.files_at(two.house.fts)) == 2


def test_a_silent_server_does_not_stop_the_other(two: Servers, add: Add) -> None:
    """Both have jobs in one shard."""
    one_file_each(two.conn)
    planned(two, add, 6)
    two.conn.execute("UPDATE fts_job SET fts_server = 'other' WHERE sid IN (SELECT sid FROM fts_job LIMIT 3)")
    two.silence()
    summary = two.house.submit()
    assert (summary.counts["jobs"], summary.counts["moved_files"]) == (3, 3)
    assert server_of(two.conn) == {("other", "SUBMITTED"): 3, ("fts", "REFUSED"): 3}
    two.assert_nothing_twice()


# --- who may release: both orders, and every place to die ---


@pytest.fixture
def job(conn: Connection, add: Add, plan: Plan) -> UUID:
    add(record(1), record(2))
    (only,) = plan()
    return only.sid


def test_the_first_to_mark_owns_and_may_release(conn: Connection, job: UUID, step: int) -> None:
    assert mark(conn, [job], 11) == {job: True}
    assert release_unsent(conn, [job], "silent", step) == (set(), 0), "only the poster"
    conn.execute("UPDATE fts_job SET poster = %s", (step,))
    assert release_unsent(conn, [job], "silent", step) == ({job}, 2)
    assert states(conn) == {"NEW": 2}
    assert mark(conn, [job], 12) == {}, "who comes after that does not POST"
    assert_audited(conn)


def test_who_marks_after_another_takes_the_right_to_release_away(
    conn: Connection, catalogue_url: str, job: UUID, step: int
) -> None:
    other_run = step + 1000
    assert mark(conn, [job], step) == {job: True}
    with connect(catalogue_url) as other:
        assert mark(other, [job], other_run) == {job: False}, "and has none itself"
    assert release_unsent(conn, [job], "silent", step) == (set(), 0)
    unmark(conn, [job], step)
    assert conn.execute("SELECT poster FROM fts_job").fetchone() == (other_run,)
    assert states(conn) == {"ACQUIRED": 2}


def test_a_mark_taken_back_leaves_the_job_as_it_was(conn: Connection, job: UUID, step: int) -> None:
    mark(conn, [job], step)
    unmark(conn, [job], step)
    assert mark(conn, [job], step + 1) == {job: True}


class Killed(BaseException):
    """As if the process had died here."""


@pytest.mark.parametrize(
    "point",
    ["submit.after_mark", "submit.before_post", "submit.before_release", "submit.after_release"],
)
def test_a_death_around_mark_and_release(
    two: Servers, add: Add, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Whatever dies where: in the end each file is at one server, once."""
    planned(two, add, 3)
    two.silence()
    two.open_other()

    def die(at: str) -> None:
        if at == point:
            raise Killed

    with monkeypatch.context() as death:
        for module in ("submit", "stops"):
            death.setattr(f"asyncstageout.steps.{module}.reached", die)
        with pytest.raises(Killed):
            two.house.submit()
    two.cycle("next")
    two.answers_again()
    two.reconcile()
    two.cycle("last")
    assert states(two.conn) == {"SUBMITTED": 3}
    two.assert_nothing_twice()


# --- what operators want of a server ---


def test_a_draining_server_gets_nothing_new_and_is_followed(
    two: Servers, add: Add, catalogue_url: str
) -> None:
    add(record(1))
    two.house.run_cycle("first")
    set_state(two.conn, "fts", "draining", reason="upgrade", by="test")
    two.open_other()
    add(record(2))
    two.house.run_cycle("second")
    assert server_of(two.conn) == {("fts", "SUBMITTED"): 1, ("other", "SUBMITTED"): 1}
    two.conn.execute("UPDATE fts_job SET next_poll_at = now()")
    heard = look_everywhere(two.conn, two.clients, lambda: connect(catalogue_url), now=datetime.now(UTC))
    assert heard == {"fts": Round(1, 0), "other": Round(1, 0)}


def test_a_server_that_is_down_is_not_contacted(two: Servers, add: Add, catalogue_url: str) -> None:
    add(record(1))
    two.house.run_cycle("first")
    set_state(two.conn, "fts", "down", reason="gone", by="test")
    two.conn.execute("UPDATE fts_job SET next_poll_at = now()")
    assert look_everywhere(two.conn, two.clients, lambda: connect(catalogue_url), now=datetime.now(UTC)) == {}


def test_the_open_jobs_of_all_servers_are_followed(two: Servers, add: Add, catalogue_url: str) -> None:
    one_file_each(two.conn)
    planned(two, add, 4)
    two.conn.execute("UPDATE fts_job SET fts_server = 'other' WHERE sid IN (SELECT sid FROM fts_job LIMIT 2)")
    two.house.submit()
    two.house.finish_at_fts()
    two.other.finish(*two.other.fts.call(lambda: list(two.other.fts.engine.jobs)))
    two.conn.execute("UPDATE fts_job SET next_poll_at = now()")
    heard = look_everywhere(two.conn, two.clients, lambda: connect(catalogue_url), now=datetime.now(UTC))
    assert heard == {"fts": Round(2, 2), "other": Round(2, 2)}
    two.house.update()
    assert states(two.conn) == {"DONE": 4}


def test_a_server_is_forgotten_only_without_open_jobs(two: Servers, add: Add) -> None:
    add(record(1))
    two.house.run_cycle()
    with pytest.raises(HasOpenJobs, match="fts has 1 open jobs: drain it first"):
        remove_server(two.conn, "fts", by="test")
    assert remove_server(two.conn, "other", by="test")
    assert not remove_server(two.conn, "other", by="test")
    actors = two.conn.execute("SELECT actor FROM config_change WHERE object = 'fts_server' AND after IS NULL")
    assert {row[0] for row in actors} == {"test"}


# --- health ---


def failing(conn: Connection) -> set[str]:
    return {server.name for server in servers(conn) if server.failing_since}


@pytest.mark.parametrize(
    ("contacts", "fails"),
    [
        ([(0, "silent", False)], False),
        ([(0, "silent", False), (19, "silent", False)], False),
        ([(0, "silent", False), (20, "silent", False)], True),
        ([(0, "refused", True)], True),
        ([(0, "refused", True), (1, None, False)], False),
        ([(0, "silent", False), (10, None, False), (25, "silent", False)], False),
        ([(-400, "refused", True)], False),
        ([(0, None, False), (-30, "late", True)], False),
    ],
)  # fmt: skip
def test_when_a_server_counts_as_failing(
    conn: Connection, contacts: list[tuple[float, str | None, bool]], fails: bool
) -> None:
    now = datetime.now(UTC)
    for after_s, problem, refused in contacts:
        note_contact(conn, "fts", problem, now + timedelta(seconds=after_s), refused=refused)
    assert failing(conn) == ({"fts"} if fails else set())
    note_contact(conn, "nobody", "no such server", now)


def test_a_watch_finds_out_how_a_server_is(two: Servers, catalogue_url: str) -> None:
    def watch() -> ServerWatch:
        one = ServerWatch(
            "fts", lambda: connect(catalogue_url), lambda: two.clients.client("fts", "service"),
            on_round=lambda _: one.stop(),
        )  # fmt: skip
        one.run()
        return one

    assert not watch().is_silent
    (view,) = [view for view in server_views(two.conn) if view.server.name == "fts"]
    assert view.version == "3.13.4"
    assert view.checked_at is not None
    two.conn.execute(
        "UPDATE fts_server_health SET failing_since = now() - interval '30 s', problem = 'silent',"
        " checked_at = now() - interval '16 s'"
    )
    assert failing(two.conn) == set(), "not for so long that it counts"
    two.silence()
    watch()
    assert failing(two.conn) == {"fts"}
    two.clients.by_server["fts"] = two.house.client
    two.conn.execute("UPDATE fts_server_health SET checked_at = now() - interval '16 s'")
    watch()
    assert failing(two.conn) == set()


# --- several identities ---


def in_own_name(conn: Connection, *users: str) -> None:
    """Have planned jobs submitted in their users' names."""
    for user in users:
        conn.execute(
            "UPDATE fts_job SET identity = %s WHERE transfer_ids &&"
            " (SELECT array_agg(id) FROM transfer WHERE username = %s)",
            (user, user),
        )


def planned_for(two: Servers, add: Add, *users: str) -> None:
    one_file_each(two.conn)
    add(*(record(number, username=user) for user in users for number in range(2)))
    two.house.collect()
    two.house.group()
    in_own_name(two.conn, *users)


def test_one_users_missing_credential_parks_his_files_and_nobody_elses(two: Servers, add: Add) -> None:
    planned_for(two, add, "alice", "bob", "carol")
    for user, problem in (("bob", CredentialMissing), ("carol", CredentialExpired)):
        two.clients.by_identity[user] = problem(Identity(user), "no file bob.pem")
    summary = two.house.submit()
    assert summary.sentence == "FTS accepted 2 jobs with 2 files; 4 files of 2 users wait for a credential"
    assert states(two.conn) == {"SUBMITTED": 2, "NEW": 4}
    assert {(hold.fts_server, hold.identity) for hold in holds(two.conn)} == {("", "bob"), ("", "carol")}
    assert "bob has had no credential since" in holds(two.conn)[0].sentence()
    assert {row[0] for row in two.conn.execute("SELECT attempt FROM transfer WHERE state = 'NEW'")} == {0}
    assert_audited(two.conn)


def test_an_identity_that_one_server_does_not_let_in(two: Servers, add: Add) -> None:
    planned_for(two, add, "alice", "bob")
    session = two.house.fts.callers[None]
    two.clients.by_identity["bob"] = FTS3Client(two.house.fts.url, session, patience=IMPATIENT, vo="testvo")
    summary = two.house.submit()
    assert summary.counts["jobs"] == 2
    assert "2 files of bob wait for a credential" in summary.sentence
    assert [(hold.fts_server, hold.identity) for hold in holds(two.conn)] == [("fts", "bob")]
    assert states(two.conn) == {"SUBMITTED": 2, "NEW": 2}


def test_the_services_own_credential_makes_the_step_red(two: Servers, add: Add) -> None:
    planned(two, add, 2)
    two.clients.by_identity["service"] = CredentialMissing(Identity("service"), "gone")
    with pytest.raises(CredentialMissing):
        two.house.submit()
    assert states(two.conn) == {"NEW": 2}


def test_a_users_credential_is_let_go_when_fts_takes_his_job(two: Servers, add: Add) -> None:
    planned_for(two, add, "bob")
    two.clients.by_identity["bob"] = CredentialMissing(Identity("bob"), "gone")
    two.house.submit()
    del two.clients.by_identity["bob"]
    two.conn.execute("UPDATE identity_hold SET retry_at = now()")
    two.house.collect("next")
    two.house.group("next")
    in_own_name(two.conn, "bob")
    two.house.submit("next")
    assert two.conn.execute("SELECT count(*) FROM identity_hold").fetchone() == (0,)
    assert states(two.conn) == {"SUBMITTED": 2}


class Tokens:
    """Gives every file its tokens, but for one user."""

    managed = False

    def __init__(self) -> None:
        self.asked: list[FilePlaces] = []

    def tokens(self, identity: Identity, file: FilePlaces) -> tuple[str, str]:
        if identity.username == "bob":
            raise CredentialMissing(identity, "the issuer does not know him")
        self.asked.append(file)
        return "read", "write"


def test_tokens_go_along_with_each_file(two: Servers, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    planned_for(two, add, "alice", "bob")
    # With a certificate storages would take the proxy that FTS gets.
    monkeypatch.setattr(FTS3Client, "certificate", None)
    two.clients.tokens = tokens = Tokens()
    sent: list[JobSubmission] = []

    def taken(submission: JobSubmission) -> UUID:
        sent.append(submission)
        return UUID(submission.sid)

    two.house.client.submit = taken  # type: ignore[method-assign]
    summary = two.house.submit()
    assert "2 files of bob wait for a credential" in summary.sentence
    assert all(job.params.unmanaged_tokens for job in sent)
    given = {(file.source_token, file.destination_token) for job in sent for file in job.files}
    assert given == {("read", "write")}
    assert {places.source_lfn for places in tokens.asked} == {
        f"/store/temp/user/alice.abc/mc/out_{number}.root" for number in range(2)
    }


# --- reconcile ---


def test_another_installations_jobs_are_none_of_ours(two: Servers, add: Add) -> None:
    planned(two, add, 1)
    two.house.submit()
    assert check(two.conn, two.clients, step_run=two.house.step).sentence == "Everything has its next step"
    (job,) = two.house.fts.fts.call(lambda: list(two.house.fts.fts.engine.jobs.values()))
    metadata = job.job_metadata
    assert metadata is not None
    assert metadata["installation"]
    assert metadata["identity"] == "service"
    two.conn.execute("UPDATE fts_job SET job_id = gen_random_uuid()")
    assert check(two.conn, two.clients, step_run=two.house.step).counts["unknown_jobs"] == 1
    two.house.fts.fts.call(lambda: metadata.update(installation="somebody else's"))
    assert check(two.conn, two.clients, step_run=two.house.step).counts["unknown_jobs"] == 0


def test_reconcile_hears_the_others_when_one_is_silent(two: Servers, add: Add) -> None:
    one_file_each(two.conn)
    planned(two, add, 2)
    two.conn.execute("UPDATE fts_job SET fts_server = 'other' WHERE sid IN (SELECT sid FROM fts_job LIMIT 1)")
    for one in (two.house.fts, two.other):
        one.ask("alice", "PUT", "/sandbox/faults",
                {"api": [{"action": "lost_reply", "method": "POST", "path": "/jobs", "count": 1}]})  # fmt: skip
    with pytest.raises(Unreachable):
        two.house.submit()
    assert states(two.conn) == {"ACQUIRED": 2}
    two.silence()
    assert two.reconcile() == {"accepted_jobs": 1}
    two.answers_again()
    assert two.reconcile() == {"accepted_jobs": 1}
    assert states(two.conn) == {"SUBMITTED": 2}
    two.assert_nothing_twice()


def test_an_unconfirmed_job_without_credential_hides_no_answer(two: Servers, add: Add) -> None:
    """Whose credential is gone, of him nothing is known; the others are settled."""
    planned_for(two, add, "alice", "bob")
    two.house.set_faults(api=[{"action": "lost_reply", "method": "POST", "path": "/jobs", "count": 4}])
    cycle_id = two.house.cycle().cycle_id
    with pytest.raises(Unreachable):
        submit(two.conn, two.clients, cycle_id=cycle_id, shard=0, step_run=two.house.step, threads=4)
    two.house.set_faults(api=[])
    two.clients.by_identity["bob"] = CredentialMissing(Identity("bob"), "gone")
    counts = two.reconcile()
    assert counts.get("unknown_jobs", 0) == 0
    assert counts.keys() <= {"accepted_jobs", "returned_jobs"}
