"""Who is told of what, when, and how often: with a real catalogue, and channels that take, refuse or die."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from threading import Barrier, Thread
from typing import Any

import pytest
from psycopg import Connection

from asyncstageout.catalogue import alert_messages
from asyncstageout.catalogue.alert_settings import (
    SilenceInvalid,
    add_silence,
    all_silences,
    end_silence,
    put_rule,
    rules_in_force,
    seen_channels,
    silences_in_force,
)
from asyncstageout.catalogue.alerts import alert_events, alert_view, known_alerts, open_views, over_views
from asyncstageout.catalogue.config_changes import config_changes
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.fts_servers import note_contact
from asyncstageout.catalogue.link_health import open_breaker
from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.clients.receivers import Failing, NotLetIn, ReceiverError
from asyncstageout.core.alert_channels import AnyChannel, read_channels
from asyncstageout.core.alerts import Kind, Notice, Severity
from asyncstageout.core.planning import Link
from asyncstageout.steps import alerts as step_alerts
from asyncstageout.steps.alerts import ChannelsNeedAPerson, look, tell

MINUTE = timedelta(minutes=1)
LINK = Link("T2_IT_Bari", "T2_CH_CERN")
CHAT = '{"name": "chat", "kind": "slack", "severity": "note"}'
PAGER = '{"name": "pager", "kind": "slack", "severity": "urgent", "over": false}'
DOWN = Failing("there", "POST /", None, "nobody listens", maybe_delivered=False)
SILENT = Failing("there", "POST /", None, "no answer")


class Death(BaseException):
    """The process is killed."""


@dataclass
class Channel:
    """Remembers what it was told; ``judge`` raises before or after that."""

    heard: list[Notice] = field(default_factory=list)
    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None

    def tell(self, notices: Sequence[Notice]) -> None:
        self.before()
        self.heard += notices
        self.after()


@dataclass
class Watch:
    """Looks and tells as the task does, at times that the test chooses."""

    conn: Connection
    step: int
    channels: list[AnyChannel]
    ends: dict[str, Channel] = field(default_factory=dict)
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def look(self, minutes: float = 0) -> None:
        self.now += timedelta(minutes=minutes)
        look(self.conn, self.channels, now=self.now, step_run=self.step)

    def tell(self, **options: Any) -> str:
        self.conn.execute("UPDATE alert_message SET due_at = now() WHERE claimed_by IS NULL")
        return tell(
            self.conn, self.channels, lambda one: self.end(one.name), step_run=self.step, **options
        ).sentence

    def end(self, name: str) -> Channel:
        return self.ends.setdefault(name, Channel())

    def __call__(self, minutes: float = 0) -> list[tuple[str, str]]:
        """Return what the chat was told: (why, rule)."""
        heard = len(self.end("chat").heard)
        self.look(minutes)
        self.tell()
        return [(one.kind.value, one.rule) for one in self.end("chat").heard[heard:]]


@pytest.fixture
def watch(conn: Connection, step: int) -> Watch:
    ensure_partitions(conn, datetime.now(UTC).date())
    note_contact(conn, "fts", None, datetime.now(UTC))
    channels, problems = read_channels(f"[{CHAT}, {PAGER}]")
    assert not problems
    return Watch(conn, step, channels)


@pytest.fixture
def down(conn: Connection) -> Callable[[bool], None]:
    """Return what lets the only FTS server fail, or be well."""

    def be(is_down: bool = True) -> None:
        note_contact(
            conn, "fts", "connection refused" if is_down else None, datetime.now(UTC), refused=is_down
        )

    return be


RULE = "fts-server-down"
Down = Callable[..., None]


def test_an_alert_from_its_beginning_to_its_end(watch: Watch, conn: Connection, down: Down) -> None:
    down()
    assert watch() == [], "it may heal yet"
    assert watch(4) == []
    assert watch(1) == [("open", RULE)]
    assert watch(2) == [], "once"
    (alert,) = open_views(conn)
    assert (alert.rule, alert.subject, alert.severity, alert.channels) == (RULE, "fts", 3, ["chat", "pager"])
    down(False)
    assert watch(2) == [], "one miss ends nothing"
    assert watch(2) == [("over", RULE)]
    assert watch(2) == []
    assert open_views(conn) == []
    (over,) = over_views(conn)
    assert over.alert_id == alert.alert_id
    assert [event.kind for event in alert_events(conn, alert.alert_id)] == [
        "open",
        "told",
        "told",
        "over",
        "told",
    ]
    assert [one.kind for one in watch.end("pager").heard] == [Kind.OPEN], (
        "it does not want to hear of the end"
    )


def test_nobody_hears_of_what_heals_itself(watch: Watch, conn: Connection, down: Down) -> None:
    for _ in range(3):
        down()
        assert watch(2) == []
        assert watch(2) == []
        down(False)
        assert watch(2) == []
    assert known_alerts(conn) == []
    assert conn.execute("SELECT count(*) FROM alert_event").fetchone() == (0,)


def test_it_is_told_again_after_the_quiet_time_and_what_comes_back_sooner_is_not(
    watch: Watch, down: Down
) -> None:
    down()
    watch()
    assert watch(5) == [("open", RULE)]
    assert watch(239) == []
    assert watch(1) == [("again", RULE)]
    down(False)
    watch(2)
    assert watch(4) == [("over", RULE)]
    down()
    watch(2)
    assert watch(5) == [], "within the quiet time of the same subject"
    assert watch(240) == [("open", RULE)]


def test_it_is_told_at_once_when_it_gets_worse(watch: Watch, conn: Connection) -> None:
    open_breaker(conn, LINK, reason="9 of 10 failed", openings=1, wait_s=300)
    watch()
    assert watch(30) == [("open", "link-broken")]
    conn.execute("UPDATE link_breaker SET opened_at = now() - interval '7 h'")
    assert watch(2) == [("worse", "link-broken")]
    assert watch(2) == []
    (alert,) = open_views(conn)
    assert [one.kind for one in alert_events(conn, alert.alert_id)] == ["open", "told", "worse", "told"]


def test_many_links_of_a_site_are_told_once(watch: Watch, conn: Connection) -> None:
    for source in ("T2_US_MIT", "T1_DE_KIT", "T2_ES_IFCA", "T2_IT_Bari"):
        open_breaker(conn, Link(source, "T2_CH_CERN"), reason="all failed", openings=1, wait_s=300)
    watch()
    assert watch(30) == [("open", "link-broken")]
    assert watch.end("chat").heard[0].subject == "T2_CH_CERN"
    assert watch.end("chat").heard[0].sentence.startswith("4 links of T2_CH_CERN, such as ")


# --- silences ---


def test_a_silence_says_nothing_until_it_ends(watch: Watch, conn: Connection, down: Down) -> None:
    made = add_silence(
        conn, "fts-*", "fts", reason="upgrade", ends_at=datetime.now(UTC) + timedelta(hours=1), by="olga"
    )
    down()
    watch()
    assert watch(5) == []
    assert [one.rule for one in open_views(conn)] == [RULE], "it is there, and nobody is told"
    assert silences_in_force(conn) == [made]
    assert end_silence(conn, made.silence_id, "pietro") is not None
    assert end_silence(conn, made.silence_id, "pietro") is None
    assert watch(2) == [("open", RULE)]
    changes = config_changes(conn, table="alert_silence")
    assert [(one.actor, one.subject()) for one in changes] == [
        ("pietro", "silence of fts-* for fts"), ("olga", "silence of fts-* for fts"),
    ]  # fmt: skip
    assert [one.ended_at is None for one in all_silences(conn)] == [False]


def test_whoever_was_told_before_a_silence_hears_of_the_end(
    watch: Watch, conn: Connection, down: Down
) -> None:
    down()
    watch()
    assert watch(5) == [("open", RULE)]
    add_silence(conn, "*", "*", reason="we know", ends_at=datetime.now(UTC) + timedelta(hours=9), by="olga")
    assert watch(300) == []
    down(False)
    watch(2)
    assert watch(4) == [("over", RULE)]


def test_a_silence_has_a_reason_an_end_and_a_rule(conn: Connection) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    for rule, reason, ends_at, field_ in (
        ("nonsense", "r", later, "rule"),
        ("*", " ", later, "reason"),
        ("*", "r", datetime.now(UTC) - MINUTE, "ends_at"),
    ):
        with pytest.raises(SilenceInvalid) as invalid:
            add_silence(conn, rule, "*", reason=reason, ends_at=ends_at, by="olga")
        assert invalid.value.field == field_
    assert all_silences(conn) == []


def test_rules_as_an_installation_wants_them(watch: Watch, conn: Connection, down: Down) -> None:
    put_rule(conn, RULE, {"for_s": 0}, "olga")
    down()
    assert watch() == [("open", RULE)]
    put_rule(conn, RULE, {"is_off": True}, "olga")
    assert rules_in_force(conn)[RULE].for_s == 0
    watch(2)
    assert watch(4) == [("over", RULE)]
    put_rule(conn, RULE, {"is_off": None, "for_s": None}, "olga")
    assert conn.execute("SELECT count(*) FROM alert_rule").fetchone() == (0,)
    assert len(config_changes(conn, table="alert_rule")) == 3


# --- at once, and deaths ---


def test_two_that_look_at_once_tell_once(
    watch: Watch, conn: Connection, catalogue_url: str, step: int, down: Down
) -> None:
    down()
    watch.look()
    now, start = watch.now + 5 * MINUTE, Barrier(4)

    def work() -> None:
        with connect(catalogue_url) as own:
            start.wait()
            look(own, watch.channels, now=now, step_run=step)
            tell(own, watch.channels, lambda one: watch.end(one.name), step_run=step)

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    watch.tell()
    assert [one.kind for one in watch.end("chat").heard] == [Kind.OPEN]
    assert [one.kind for one in watch.end("pager").heard] == [Kind.OPEN]


def test_a_death_before_the_decision_is_written_decides_nothing(
    watch: Watch, conn: Connection, down: Down, monkeypatch: pytest.MonkeyPatch
) -> None:
    down()
    watch.look()

    def die(point: str) -> None:
        raise Death(point)

    with monkeypatch.context() as patched:
        patched.setattr(step_alerts, "reached", die)
        with pytest.raises(Death):
            watch.look(5)
    assert open_views(conn) == []
    assert watch() == [("open", RULE)]


def test_a_death_between_sending_and_recording_sends_once_more(
    watch: Watch, conn: Connection, down: Down
) -> None:
    down()
    watch.look()
    watch.look(5)

    def die() -> None:
        raise Death

    watch.end("chat").after = die
    with pytest.raises(Death):
        watch.tell()
    watch.end("chat").after = lambda: None
    watch.tell()
    assert len(watch.end("chat").heard) == 1, "its lease holds: nobody knows whether it arrived"
    conn.execute("UPDATE alert_message SET due_at = now() WHERE told_at IS NULL")
    watch.tell()
    first, second = watch.end("chat").heard
    assert first == second, "the same message, with the same id"
    watch.tell()
    assert len(watch.end("chat").heard) == 2


def test_whoever_may_have_heard_the_beginning_hears_the_end(
    watch: Watch, conn: Connection, down: Down
) -> None:
    """A death after sending, and the alert is over before the lease is."""
    down()
    watch.look()
    watch.look(5)

    def die() -> None:
        raise Death

    watch.end("chat").after = die
    with pytest.raises(Death):
        watch.tell()
    watch.end("chat").after = lambda: None
    down(False)
    watch.look(2)
    watch.look(4)
    conn.execute("UPDATE alert_message SET due_at = now() WHERE told_at IS NULL")
    watch.tell()
    assert [one.kind for one in watch.end("chat").heard] == [Kind.OPEN, Kind.OVER]


def test_what_never_went_out_and_is_over_is_never_told(watch: Watch, conn: Connection, down: Down) -> None:
    def fail() -> None:
        raise DOWN

    watch.end("chat").before = fail
    down()
    watch.look()
    watch.look(5)
    watch.tell()
    down(False)
    watch.look(2)
    watch.look(4)
    watch.end("chat").before = lambda: None
    watch.tell()
    assert watch.end("chat").heard == []
    assert conn.execute(
        "SELECT count(*) FROM alert_message WHERE told_at IS NULL AND dropped_at IS NULL"
    ).fetchone() == (0,)


@pytest.mark.parametrize(("error", "kinds"), [(SILENT, [Kind.OVER]), (DOWN, [])])
def test_an_end_is_told_where_the_beginning_may_have_arrived(
    watch: Watch, down: Down, error: ReceiverError, kinds: list[Kind]
) -> None:
    def fail() -> None:
        raise error

    watch.end("chat").before = fail
    down()
    watch.look()
    watch.look(5)
    watch.tell()
    down(False)
    watch.look(2)
    watch.look(4)
    watch.end("chat").before = lambda: None
    watch.tell()
    assert [one.kind for one in watch.end("chat").heard] == kinds


# --- channels that fail ---


def failing(error: ReceiverError) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_a_channel_that_fails_keeps_no_other_from_hearing(watch: Watch, conn: Connection, down: Down) -> None:
    down()
    watch.look()
    watch.look(5)
    watch.end("chat").before = failing(DOWN)
    assert watch.tell() == "Told 1 messages"
    assert len(watch.end("pager").heard) == 1
    watch.tell()
    with pytest.raises(
        ChannelsNeedAPerson, match=r"channel chat: there: POST / failed: nobody listens .*undelivered"
    ):
        watch.tell()
    chat, pager = seen_channels(conn)
    assert (chat.name, chat.waiting, chat.problem) == ("chat", 1, "there: POST / failed: nobody listens")
    assert (pager.waiting, pager.problem) == (0, None)
    watch.end("chat").before = lambda: None
    watch.tell()
    (told,) = watch.end("chat").heard
    assert told.kind is Kind.OPEN
    (alert,) = open_views(conn)
    assert [one.kind for one in alert_events(conn, alert.alert_id)] == ["open", "refused", "told", "told"]


def test_a_channel_that_does_not_let_us_in_needs_a_person_at_once(watch: Watch, down: Down) -> None:
    down()
    watch.look()
    watch.look(5)
    watch.end("chat").before = failing(NotLetIn("there", "POST /", 404, "no_service"))
    with pytest.raises(ChannelsNeedAPerson, match="no_service"):
        watch.tell()
    assert len(watch.end("pager").heard) == 1


def test_what_is_wrong_with_a_channel_is_red_and_the_others_are_told(watch: Watch, down: Down) -> None:
    down()
    watch.look()
    watch.look(5)
    with pytest.raises(ChannelsNeedAPerson, match="channel 3: name"):
        watch.tell(problems=["channel 3: name: Field required"])
    assert len(watch.end("chat").heard) == 1


def test_waits_between_tries_grow_to_half_an_hour(watch: Watch, conn: Connection, down: Down) -> None:
    down()
    watch.look()
    watch.look(5)
    waits = []
    watch.end("chat").before = failing(DOWN)
    for _ in range(7):
        conn.execute("UPDATE alert_message SET tries = %s WHERE channel = 'chat'", (len(waits),))
        with pytest.raises(ChannelsNeedAPerson) if len(waits) > 1 else _nothing():
            watch.tell()
        row = conn.execute(
            "SELECT round(extract(epoch FROM due_at - now()) / 60) FROM alert_message WHERE channel = 'chat'"
        ).fetchone()
        assert row
        waits.append(int(row[0]))
    assert waits == [1, 2, 4, 8, 16, 30, 30]


def _nothing() -> Any:
    from contextlib import nullcontext  # noqa: PLC0415

    return nullcontext()


def test_a_test_goes_through_every_channel(watch: Watch, conn: Connection) -> None:
    assert alert_messages.make_test(conn, "nobody has seen a channel yet") == []
    watch.look()
    numbers = alert_messages.make_test(conn, "hello")
    assert len(numbers) == 2
    watch.end("pager").before = failing(DOWN)
    watch.tell()
    (heard,) = watch.end("chat").heard
    assert (heard.kind, heard.sentence, heard.severity, heard.alert_id) == (
        Kind.TEST,
        "hello",
        Severity.NOTE,
        None,
    )
    chat, pager = alert_messages.outcomes(conn, numbers)
    assert chat.told_at
    assert pager.problem == "there: POST / failed: nobody listens"
    conn.execute("UPDATE alert_message SET made_at = made_at - interval '2 h'")
    watch.tell()
    assert alert_messages.outcomes(conn, numbers)[1].dropped_at, "a test does not wait for ever"


def test_messages_of_a_channel_that_is_gone_wait_a_day(watch: Watch, conn: Connection, down: Down) -> None:
    down()
    watch.look()
    watch.look(5)
    both, watch.channels = watch.channels, watch.channels[:1]
    watch.tell()
    assert watch.end("pager").heard == []
    watch.channels = both
    watch.tell()
    assert len(watch.end("pager").heard) == 1


def test_an_alert_can_be_read(watch: Watch, conn: Connection, down: Down) -> None:
    down()
    watch.look()
    (pending,) = open_views(conn, pending=True)
    assert open_views(conn) == []
    assert pending.place.names == ("fts",)
    assert alert_view(conn, pending.alert_id) == pending
    assert alert_view(conn, 10**12) is None


@pytest.fixture(autouse=True)
def nothing_else(conn: Connection) -> Iterator[None]:
    yield
    rest = conn.execute("SELECT DISTINCT rule FROM alert").fetchall()
    assert {rule for (rule,) in rest} <= {RULE, "link-broken"}, "a catalogue in which nothing else is wrong"
