"""In which condition links and sites are: in words, for badges; and what people may do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from psycopg import Connection

from asyncstageout.catalogue.link_health import breakers
from asyncstageout.catalogue.restrictions import open_restrictions
from asyncstageout.core.breaker import BreakerState
from asyncstageout.core.planning import Link
from asyncstageout.core.restrictions import PARTICIPLES, Restriction, Restrictions
from asyncstageout.ui.actions import REASON, Action, Field

LASTING = (
    ("3600", "1 hour"), ("7200", "2 hours"), ("28800", "8 hours"), ("86400", "1 day"), ("259200", "3 days"),
    ("604800", "1 week"), ("", "until somebody lifts it"),
)  # fmt: skip
MODES = (
    ("pause", "Pause: files wait, new requests are taken"),
    ("drain", "Drain: files go on, new requests are refused"),
    ("ban", "Ban: files wait, new requests are refused"),
)


class Condition(NamedTuple):
    """One word on a badge, and the sentence behind it."""

    word: str
    tone: str
    """``good``, ``note``, ``warning`` or ``bad``: class in the style sheet."""
    sentence: str
    is_restriction: bool = False
    """People set it."""

    def __str__(self) -> str:
        return self.word


class Conditions:
    """Those of all links and sites at one moment."""

    def __init__(self, conn: Connection, now: datetime) -> None:
        self.restrictions = open_restrictions(conn)
        self.breakers = breakers(conn)
        self._now = now
        self._in_force = Restrictions(self.restrictions, now)

    def of_link(self, link: Link) -> Sequence[Condition]:
        """Return what keeps files from this link, the graver first; nothing if it is well."""
        found = []
        if stop := self._in_force.stops(*link):
            found.append(Condition(PARTICIPLES[stop.mode], "warning", stop.sentence(), True))
        if breaker := self.breakers.get(link):
            word = "probing" if breaker.state is BreakerState.PROBING else "breaker open"
            found.append(Condition(word, "bad", breaker.sentence(self._now)))
        refusal = self._in_force.refuses(*link)
        if refusal and refusal is not stop:
            found.append(Condition(PARTICIPLES[refusal.mode], "note", refusal.sentence(), True))
        return tuple(found)  # of thousands of links that are well, it is one and the same

    def of_site(self, site: str) -> list[Condition]:
        """Return what is in force for a site as a whole, at either end, and for everybody."""
        found = []
        for one in self.restrictions:
            if one.is_in_force(self._now) and one.username is None and one.activity is None:
                ends = [
                    end
                    for end, names in (
                        ("", one.site),
                        ("as source", one.source),
                        ("as destination", one.destination),
                    )
                    if names == site
                ]
                if ends and not (one.source and one.destination):
                    word = "downtime" if one.is_downtime else f"{PARTICIPLES[one.mode]} {ends[0]}".strip()
                    found.append(Condition(word, "warning", one.sentence(), True))
        broken = [link for link in self.breakers if site in link]
        if broken:
            said = "link is" if len(broken) == 1 else "links are"
            found.append(
                Condition(
                    f"{len(broken)} broken",
                    "bad",
                    f"{len(broken)} {said} broken: {', '.join(map(str, broken))}",
                )
            )
        return found

    def touching_link(self, link: Link) -> list[Restriction]:
        """Return the restrictions, also announced ones, that some files of a link are subject to."""
        return [
            one
            for one in self.restrictions
            if any(
                scope.source in (None, link.source) and scope.destination in (None, link.destination)
                for scope in one.scopes()
            )
        ]

    def touching_site(self, site: str) -> list[Restriction]:
        """Return those that name a site, or no site at all."""
        sites = [{one.site, one.source, one.destination} - {None} for one in self.restrictions]
        return [
            one for one, named in zip(self.restrictions, sites, strict=True) if not named or site in named
        ]


def restricting(what: str, **area: str) -> Action:
    """Return the action that restricts an area, such as ``site="T2_IT_Bari"``, as the REST API names it."""
    return Action(
        "restrict", "Pause or drain", "/restrictions",
        f"Stops or refuses files of {what}, from the next cycle on. What FTS already has goes on.",
        (
            Field("mode", "What", "choice", value="pause", choices=MODES),
            Field("ends_at", "For how long", "lasting", value="7200", choices=LASTING),
            REASON,
        ),
        body=area, is_grave=True,
    )  # fmt: skip


def lifting(restrictions: Iterable[Restriction]) -> dict[int, Action]:
    """Return the action that lifts each of these restrictions, by its number."""
    return {
        one.restriction_id: Action(
            f"lift-{one.restriction_id}", "Lift", f"/restrictions/{one.restriction_id}/lift",
            f"Ends it now: {one.what()} is {PARTICIPLES[one.mode]} by {one.author}: {one.reason}."
            " Files that waited for it start at once.",
        )
        for one in restrictions
    }  # fmt: skip
