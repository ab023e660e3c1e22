"""How pages say numbers, sizes, shares and times; each is a filter of the templates."""

from __future__ import annotations

from datetime import UTC, datetime

from markupsafe import Markup

from asyncstageout.steps.recording import size

NOTHING = Markup('<span class="nothing" title="nothing to say">–</span>')
"""In place of a value that there is not."""
_STEPS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def number(value: float | None) -> str | Markup:
    """Say a number.

    >>> number(1234567), number(2.5)
    ('1,234,567', '2.5')
    """
    if value is None:
        return NOTHING
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}".rstrip("0").rstrip(".")


def short(value: float | None) -> str | Markup:
    """Say a number in little room.

    >>> short(950), short(12_345), short(4_100_000)
    ('950', '12.3k', '4.1M')
    """
    if value is None:
        return NOTHING
    for power, letter in ((9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            scaled = value / 10**power
            return f"{scaled:.0f}{letter}" if scaled >= 100 else f"{scaled:.1f}{letter}"
    return f"{value:g}"


def bytes_(value: int | None) -> str | Markup:
    return NOTHING if value is None else size(value)


def share(value: float | None) -> str | Markup:
    """Say a share; what is not quite all is never called all.

    >>> share(0.9999), share(0.5), share(1.0)
    ('99.9 %', '50.0 %', '100 %')
    """
    if value is None:
        return NOTHING
    if value in (0, 1):
        return f"{value:.0%}".replace("%", " %")
    return f"{min(value * 100, 99.9):.1f} %"


def duration(seconds: float | None) -> str | Markup:
    """Say how long something takes, in the two largest units that matter.

    >>> duration(4.49), duration(75), duration(90_000), duration(7200)
    ('4.5 s', '1 min 15 s', '1 d 1 h', '2 h')
    """
    if seconds is None:
        return NOTHING
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds else "0 s"
    rest, parts = round(seconds), list[tuple[int, str]]()
    for length, unit in _STEPS:
        count, rest = divmod(rest, length)
        if count or parts:
            parts.append((count, unit))
    parts.append((rest, "s"))
    return " ".join(f"{count} {unit}" for count, unit in parts[:2] if count)


def ago(moment: datetime, now: datetime) -> str:
    """Say how far a moment is from now.

    >>> from datetime import timedelta
    >>> now = datetime(2026, 11, 27, tzinfo=UTC)
    >>> ago(now - timedelta(seconds=200), now), ago(now + timedelta(hours=2), now), ago(now, now)
    ('3 min ago', 'in 2 h', 'just now')
    """
    seconds = (now - moment).total_seconds()
    if abs(seconds) < 5:
        return "just now"
    said = str(duration(max(abs(seconds), 10))).split(" ")
    words = " ".join(said[:2])
    return f"{words} ago" if seconds > 0 else f"in {words}"


def when(moment: datetime | None, now: datetime | None = None, to_the_second: bool = False) -> Markup:
    """Return a moment in UTC and how long ago it is; the script adds the local time."""
    if moment is None:
        return NOTHING
    now, moment = now or datetime.now(UTC), moment.astimezone(UTC)
    year = "" if moment.year == now.year else f" {moment.year}"
    said = f"{moment.day} {moment:%b}{year} {moment:{'%H:%M:%S' if to_the_second else '%H:%M'}}"
    return Markup('<time datetime="{}" title="{} UTC">{} <span class="ago">{}</span></time>').format(
        f"{moment:%Y-%m-%dT%H:%M:%SZ}", f"{moment:%Y-%m-%d %H:%M:%S}", said, ago(moment, now)
    )


FILTERS = {
    "number": number,
    "short": short,
    "bytes": bytes_,
    "share": share,
    "duration": duration,
    "when": when,
}
