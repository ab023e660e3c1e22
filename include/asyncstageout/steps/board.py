"""What a cycle sees before it decides: links with work, what stops them, and how much room there is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from psycopg import Connection

from asyncstageout.catalogue.claims import Barred, Entitled, LinkView, in_flight_of, links_with_work
from asyncstageout.catalogue.cycles import CycleParams
from asyncstageout.catalogue.fts_servers import servers
from asyncstageout.catalogue.identity_holds import IdentityHold, holds
from asyncstageout.catalogue.link_health import breakers
from asyncstageout.catalogue.policies import policy_rows
from asyncstageout.catalogue.restrictions import open_restrictions
from asyncstageout.catalogue.storages import current_storages
from asyncstageout.core.breaker import Breaker
from asyncstageout.core.identities import Identity
from asyncstageout.core.planning import InFlight, Link
from asyncstageout.core.policies import LIMITS, Bucket, Policies, PolicyRow
from asyncstageout.core.restrictions import Restrictions
from asyncstageout.core.routing import Held, Routing, Way


@dataclass(eq=False)
class Board:
    """The links with work, and everything that counts for them at this moment."""

    views: list[LinkView]
    routing: Routing
    breakers: dict[Link, Breaker]
    holds: list[IdentityHold]
    activities: frozenset[str]
    """Those that a policy or a restriction names: files of all others are treated alike."""
    now: datetime
    in_flight: defaultdict[Bucket, InFlight] = field(default_factory=lambda: defaultdict(InFlight))

    def why_held(self, view: LinkView) -> str | None:
        """Return why nothing of a link may start, or None."""
        reasons = Counter(
            way.reason
            for username in view.usernames
            if isinstance(way := self._way(view, username), Held) and not way.is_identity
        )
        if reasons.total() == len(view.usernames):
            return next(iter(reasons)) if len(reasons) == 1 else "; ".join(reasons)
        if not any(one.room for one in self.entitled(view)):
            return self._why_no_room(view)
        return None

    def users_held(self, view: LinkView) -> dict[str, str]:
        """Return why single users of a link wait, by user name."""
        return {
            username: way.reason
            for username in view.usernames
            if isinstance(way := self._way(view, username), Held) and not way.is_identity
        }

    def entitled(self, view: LinkView) -> list[Entitled]:
        """Return who may send on a link, and how many files."""
        breaker = self.breakers.get(view.link)
        found = []
        for username in view.usernames:
            rooms = [self.files_left(way) for way in self._ways(view, username)]
            room = max(rooms, default=0)
            if breaker:
                room = breaker.room(room, self.now)
            found.append(Entitled(*view.link, username, room))
        return found

    def barred(self, view: LinkView) -> Iterator[Barred]:
        """Yield what stays although its user may send."""
        for username in view.usernames:
            for activity in self.activities:
                way = self.routing.way(view.link, username, activity, username)
                if (isinstance(way, Held) and not way.is_identity) or (
                    isinstance(way, Way) and not self.files_left(way)
                ):
                    yield Barred(*view.link, username, activity, None)
        for hold in self.holds:
            username = Identity.read(hold.identity).username
            if username in view.usernames and self._holds(view, username, hold.identity):
                yield Barred(*view.link, username, None, hold.identity)

    def files_left(self, way: Way) -> int:
        """Return how many more files of a way's bucket may start."""
        busy = self.in_flight[way.bucket]
        limit = way.policy.max_bytes_in_flight
        if limit is not None and busy.files and busy.size_bytes >= limit:
            return 0
        return max(0, way.policy.max_files_in_flight - busy.files)

    def start(self, way: Way, size_bytes: int) -> bool:
        """Count a file as started if there is room for it.

        A file larger than the limit goes when nothing else does, or it would never go.
        """
        busy, limit = self.in_flight[way.bucket], way.policy.max_bytes_in_flight
        if not self.files_left(way) or (
            limit is not None and busy.files and busy.size_bytes + size_bytes > limit
        ):
            return False
        self.in_flight[way.bucket] = busy + InFlight(1, size_bytes)
        return True

    def _way(self, view: LinkView, username: str) -> Way | Held:
        return self.routing.way(view.link, username, None, username)

    def _ways(self, view: LinkView, username: str) -> Iterator[Way]:
        """Yield the ways that a user's files may have, by activity, as if no identity were held."""
        for activity in (None, *self.activities):
            way = self.routing.way(view.link, username, activity, username)
            if isinstance(way, Held) and way.is_identity:
                way = self.routing.without_holds.way(view.link, username, activity, username)
            if isinstance(way, Way):
                yield way

    def _holds(self, view: LinkView, username: str, identity: str) -> bool:
        way = self.routing.way(view.link, username, None, identity)
        return isinstance(way, Held) and way.is_identity

    def _why_no_room(self, view: LinkView) -> str:
        if breaker := self.breakers.get(view.link):
            return breaker.sentence(self.now)
        return f"full: {view.in_flight.files:,} files in flight"


def look(conn: Connection, params: CycleParams) -> Board:
    """Read what a cycle with these parameters has to decide on."""
    views = links_with_work(conn, params)
    rows, restrictions, held = policy_rows(conn), open_restrictions(conn), holds(conn)
    now = datetime.now(UTC)
    routing = Routing(
        policies=Policies(rows),
        restrictions=Restrictions(restrictions, now),
        servers=servers(conn),
        storages=current_storages(conn, sorted({site for view in views for site in view.link})),
        holds={(hold.fts_server, hold.identity): hold.sentence() for hold in held},
    )
    named = {row.activity for row in rows} | {row.activity for row in restrictions}
    board = Board(
        views, routing, breakers(conn), held, frozenset(name for name in named if name is not None), now
    )
    _count_in_flight(conn, board, rows)
    return board


def _count_in_flight(conn: Connection, board: Board, rows: Sequence[PolicyRow]) -> None:
    """Count what FTS has; file by file only where a limit is for single users or activities."""
    if not any((row.username or row.activity) and LIMITS & row.settings.keys() for row in rows):
        for view in board.views:
            board.in_flight[Bucket(*view.link)] = view.in_flight
        return
    busy = in_flight_of(conn, [view.link for view in board.views])
    for (source, destination, username, activity), count in busy.items():
        bucket = board.routing.policies.bucket_of(source, destination, username, activity)
        board.in_flight[bucket] += count
