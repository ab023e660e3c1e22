"""What needs a person, as alerts: what belongs together, when anybody is told, and when it is over.

A *finding* is one thing that is wrong at this moment. Findings of a rule with one subject are one *alert*. It
is told when it has held for its rule's ``for_s``, again when ``quiet_s`` have passed, at once when it gets
worse, and a last time when it is over; and not at all while a silence lasts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple, TypeAlias

from asyncstageout.core.alert_channels import AnyChannel
from asyncstageout.core.alert_rules import Rule

OVER_AFTER_S = 240.0
"""An alert that nobody finds for so long is over: longer than two looks, so that one miss ends nothing."""


class Severity(IntEnum):
    """How urgent it is."""

    NOTE = 1
    """Somebody should know."""
    WARNING = 2
    """Some files do not go where they should."""
    URGENT = 3
    """Files stand still, or what is wrong cannot be mended by this service."""


class About(NamedTuple):
    """Where to look: what it is, and its names."""

    kind: Literal["link", "site", "sites", "server", "credential", "step", "run", "jobs", "nothing"]
    names: tuple[str, ...] = ()
    """link: source and destination; step: DAG, run, task and map index; run: DAG and run; else a name."""


class Key(NamedTuple):
    """What makes an alert the same one the next time it is looked."""

    rule: str
    subject: str


@dataclass(frozen=True, slots=True)
class Attention:
    """One thing that needs a person."""

    rule: str
    """Name of a rule (:data:`asyncstageout.core.alert_rules.RULES`)."""
    severity: Severity
    sentence: str
    about: About
    since: datetime | None = None
    remedy: str = ""
    """What to do, beside the runbook of the rule."""
    of: str = ""
    """The subject, where it is not the names of ``about``."""
    members: tuple[str, ...] = ()
    """Subjects of what was put together, if more than this."""

    @property
    def subject(self) -> str:
        """What it is about, the same whenever it is found: ``T2_IT_Bari/T2_CH_CERN``."""
        return self.of or "/".join(self.about.names)

    @property
    def key(self) -> Key:
        return Key(self.rule, self.subject)


class State(StrEnum):
    """What is thought of an alert."""

    PENDING = "pending"
    """It has not held for long enough; if it heals now, nobody ever hears of it."""
    OPEN = "open"
    OVER = "over"


class Kind(StrEnum):
    """Why somebody is told."""

    OPEN = "open"
    WORSE = "worse"
    AGAIN = "again"
    OVER = "over"
    TEST = "test"


class Told(NamedTuple):
    """What a channel was last told, or is about to be told, of one subject of a rule."""

    alert_id: int
    severity: Severity
    at: datetime


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert as it is known before a look."""

    alert_id: int
    key: Key
    state: State
    severity: Severity
    first_seen_at: datetime
    last_seen_at: datetime


@dataclass(frozen=True, slots=True)
class Silence:
    """For whom nobody is told for a while, and why."""

    silence_id: int
    rule: str
    """Pattern with ``*`` for a rule's name."""
    subject: str
    """Pattern for a subject, or for one of its parts: a site is meant at both ends of a link."""
    reason: str
    author: str
    starts_at: datetime
    ends_at: datetime
    ended_at: datetime | None = None
    """When somebody ended it early."""

    def fits(self, key: Key) -> bool:
        """Say whether it is for an alert.

        >>> at = datetime(2026, 11, 27)
        >>> one = Silence(1, "link-*", "T2_IT_*", "downtime", "olga", at, at)
        >>> one.fits(Key("link-broken", "T1_DE_KIT/T2_IT_Bari")), one.fits(Key("files-late", "T2_IT_Bari"))
        (True, False)
        """
        parts = {key.subject, *key.subject.split("/")}
        return fnmatchcase(key.rule, self.rule) and any(fnmatchcase(part, self.subject) for part in parts)


def silence_of(key: Key, silences: Iterable[Silence]) -> Silence | None:
    """Return the silence for an alert that lasts longest, or None; ``silences``: those in force."""
    return max((one for one in silences if one.fits(key)), key=lambda one: one.ends_at, default=None)


# --- what belongs together ---


def grouped(
    findings: Iterable[Attention], rules: Mapping[str, Rule], alerts: Collection[Alert] = ()
) -> dict[Key, Attention]:
    """Return one finding for each alert: of a subject the gravest, links of one site together.

    Args:
        alerts: pending and open ones. A link that is told of alone stays so; links of a site that has an
        alert
            join it.
    """
    by_rule: defaultdict[str, list[Attention]] = defaultdict(list)
    for one in findings:
        by_rule[one.rule].append(one)
    groups: dict[Key, Attention] = {}
    for name, found in by_rule.items():
        split = _by_site if rules[name].by_site else _by_subject
        parts = split(found, [one for one in alerts if one.key.rule == name])
        groups |= {Key(name, subject): _together(subject, members) for subject, members in parts.items()}
    return groups


def _by_subject(found: Sequence[Attention], _: Iterable[Alert]) -> dict[str, list[Attention]]:
    parts: defaultdict[str, list[Attention]] = defaultdict(list)
    for one in found:
        parts[one.subject].append(one)
    return parts


def _by_site(found: Sequence[Attention], alerts: Iterable[Alert]) -> dict[str, list[Attention]]:
    sites = {one.key.subject for one in alerts if "/" not in one.key.subject}
    alone = {one.key.subject for one in alerts if one.state is State.OPEN} - sites
    parts: defaultdict[str, list[Attention]] = defaultdict(list)
    rest = []
    for one in found:
        if one.subject in alone:
            parts[one.subject].append(one)
        elif known := [name for name in one.about.names if name in sites]:
            parts[known[0]].append(one)
        else:
            rest.append(one)
    while rest:
        # The site with the most links first; of two that have as many, always the same.
        counts = Counter(name for one in rest for name in set(one.about.names))
        site, count = max(counts.items(), key=lambda pair: (pair[1], pair[0]))
        if count == 1:
            return parts | {one.subject: [one] for one in rest}
        parts[site] = [one for one in rest if site in one.about.names]
        rest = [one for one in rest if site not in one.about.names]
    return parts


def _together(subject: str, members: Sequence[Attention]) -> Attention:
    worst = max(members, key=lambda one: one.severity)
    if len(members) == 1:
        return worst
    since = min((one.since for one in members if one.since), default=None)
    is_site = worst.about.kind == "link" and "/" not in subject
    count = len(members)
    said = f"{count:,} links of {subject}, such as " if is_site else ""
    rest = "" if is_site else f" (and {count - 1:,} more)"
    return replace(
        worst,
        sentence=f"{said}{worst.sentence}{rest}",
        about=About("site", (subject,)) if is_site else worst.about,
        since=since,
        of=subject,
        members=tuple(one.subject for one in members),
    )


# --- what follows ---


class Opening(NamedTuple):
    """An alert that was not there before."""

    finding: Attention
    first_seen_at: datetime
    state: State


class Seeing(NamedTuple):
    """An alert that is there still."""

    alert: Alert
    finding: Attention
    state: State


class Ending(NamedTuple):
    """An alert that is over; one that was pending is forgotten."""

    alert: Alert


Move: TypeAlias = Opening | Seeing | Ending


def moves(
    groups: Mapping[Key, Attention], alerts: Iterable[Alert], rules: Mapping[str, Rule], now: datetime
) -> Iterator[Move]:
    """Say what becomes of alerts: of those that are known (pending, open), and those that are new."""
    known = {one.key: one for one in alerts}
    for key, finding in groups.items():
        alert = known.get(key)
        # A pending alert that was put together with others goes on in theirs.
        absorbed = [
            known[one] for one in (Key(key.rule, member) for member in finding.members) if one in known
        ]
        first_seen_at = min([now, *(one.first_seen_at for one in (absorbed if alert is None else [alert]))])
        has_held = now - first_seen_at >= timedelta(seconds=rules[key.rule].for_s)
        if alert is None:
            yield Opening(finding, first_seen_at, State.OPEN if has_held else State.PENDING)
        else:
            is_open = has_held or alert.state is State.OPEN
            yield Seeing(alert, finding, State.OPEN if is_open else State.PENDING)
    for key, alert in known.items():
        is_gone = now - alert.last_seen_at >= timedelta(seconds=OVER_AFTER_S)
        if key not in groups and (is_gone or alert.state is State.PENDING):
            yield Ending(alert)


def telling(
    alert_id: int, severity: Severity, last: Told | None, *, quiet_s: float, now: datetime
) -> Kind | None:
    """Return why a channel is told of an open alert now, or None if it is not.

    Args:
        last: what the channel was last told of this subject, also of an earlier alert.
    """
    if last is None or now - last.at >= timedelta(seconds=quiet_s):
        return Kind.AGAIN if last and last.alert_id == alert_id else Kind.OPEN
    return Kind.WORSE if severity > last.severity else None


def wants(channel: AnyChannel, key: Key, severity: Severity) -> bool:
    """Say whether a channel is for an alert."""
    return severity >= Severity[channel.severity.upper()] and any(
        fnmatchcase(key.rule, pattern) for pattern in channel.rules
    )


# --- what is said ---


class Notice(NamedTuple):
    """What a channel is told of one alert."""

    message_id: int
    alert_id: int | None
    """None: a test."""
    kind: Kind
    severity: Severity
    sentence: str
    rule: str
    subject: str
    remedy: str
    about: About
    since: datetime
    over_at: datetime | None

    @property
    def word(self) -> str:
        """What stands in front of the sentence."""
        match self.kind:
            case Kind.OVER:
                return "over"
            case Kind.TEST:
                return "test"
            case Kind.AGAIN:
                return f"{self.severity.name.lower()}, still"
        return self.severity.name.lower()
