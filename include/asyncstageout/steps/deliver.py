"""Tells one subscriber what waits for it: claim, send, record. Whoever is at fault pays for what goes wrong.

Where a receiver fails on a batch, or refuses it, half of it is tried, and so on (:class:`_Batch`): a single
bad message among n costs about 2 log2 n calls and holds up nobody but the later ones of its own file. As long
as nothing at all was taken, single messages from both ends decide: if it takes neither, it is the receiver.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from time import monotonic

from psycopg import Connection

from asyncstageout.catalogue import outbox
from asyncstageout.catalogue.outbox import Claimed, Refusal
from asyncstageout.catalogue.subscriptions import (
    SubscriptionView,
    note_failing,
    note_well,
    set_state,
    subscriptions,
)
from asyncstageout.clients.receivers import (
    ContentRefused,
    Faulty,
    Gone,
    NotLetIn,
    Receiver,
    ReceiverError,
)
from asyncstageout.core.deliveries import LONGEST_PAUSE_S, pause_s, retry_delay_s
from asyncstageout.core.subscriptions import State
from asyncstageout.steps.crashpoints import reached
from asyncstageout.steps.intake import storable
from asyncstageout.steps.recording import Summary

logger = logging.getLogger(__name__)

LONGEST_RUN_S = 240.0
"""Then the next run goes on, so that a large backlog hides nothing from the schedule."""
LEASE_MARGIN_S = 30.0
GOLDEN = 0.6180339887498949
"""Its multiples are even over neighbouring numbers."""


class NoSuchSubscription(LookupError):
    """There is no subscription of this name (any more)."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"there is no subscription {name}; `aso subscriptions list` shows them")


class DeliveryNeedsAPerson(Exception):
    """A receiver does not let us in or is gone, or messages are dead. Everything else was told."""

    def __init__(self, name: str, sentence: str) -> None:
        self.name = name
        super().__init__(f"{sentence} (runbooks/dead-letters.md)")


class _Stop(Exception):
    """The receiver takes nothing more now."""

    def __init__(self, cause: ReceiverError) -> None:
        self.cause = cause
        super().__init__(str(cause))


def deliver(
    conn: Connection,
    name: str,
    open_receiver: Callable[[SubscriptionView], Receiver],
    *,
    step_run: int,
    longest_s: float = LONGEST_RUN_S,
) -> Summary:
    """Send what is due until nothing is, the receiver fails, or ``longest_s`` is over.

    Several at once share the work: no message is sent by two of them. Run again after a death it goes on
    when the leases are over; what was sent and not recorded is sent again, with the same ids.

    Args:
        open_receiver: makes the receiver; raises NotLetIn if the connection is wrong.

    Raises:
        NoSuchSubscription: see there.
        DeliveryNeedsAPerson: see there.
    """
    found = subscriptions(conn, name)
    if not found:
        raise NoSuchSubscription(name)
    delivery = _Delivery(conn, found[0], step_run)
    ends_at_s = monotonic() + longest_s
    try:
        receiver = open_receiver(found[0])
        while delivery.round(receiver) and monotonic() < ends_at_s:
            pass
    except ReceiverError as error:  # the connection is wrong: nothing was claimed
        delivery.stopped = error
        delivery.note()
    except _Stop as stop:
        delivery.stopped = stop.cause
        delivery.note()
    return delivery.summary()


class _Delivery:
    """One run for one subscriber."""

    def __init__(self, conn: Connection, subscription: SubscriptionView, step_run: int) -> None:
        self.conn = conn
        self.subscription = subscription
        self.step_run = step_run
        self.counts: Counter[str] = Counter()
        self.is_failing = subscription.health is not None
        self.is_up = False
        """It took, or judged, something in this run."""
        self.suspects = 0
        self.stopped: ReceiverError | None = None

    def round(self, receiver: Receiver) -> bool:
        """Claim and send one batch; return whether there may be more to do."""
        claimed, blocked = outbox.claim(
            self.conn,
            self.subscription.number,
            # Whether a failing receiver is well again is not found out with a whole batch.
            at_most=1 if self.is_failing else receiver.batch,
            lease_s=receiver.longest_s + LEASE_MARGIN_S,
            step_run=self.step_run,
        )
        if claimed:
            _Batch(self, receiver, claimed).send()
        return bool(claimed or blocked)

    def told(self, claimed: Sequence[Claimed]) -> None:
        """Record what the receiver was sent and took, which may be nothing: it judged all of it."""
        reached("deliver.after_send")
        self.counts["delivered"] += outbox.told(self.conn, _numbers(claimed), step_run=self.step_run)
        self.is_up = True
        if self.is_failing:
            note_well(self.conn, self.subscription.number)
            self.is_failing = False
        reached("deliver.after_record")

    def refused(self, refusals: Sequence[tuple[Claimed, str]]) -> None:
        """Record what it does not take; each has used a try."""
        if not refusals:
            return
        name = self.subscription.wanted.name
        for one, problem in refusals:
            logger.warning("%s: %s: %s", name, one.message.id, problem)
        waits = [
            Refusal(one.number, storable(problem), retry_delay_s(one.tries + 1, _spread(one.number)))
            for one, problem in refusals
        ]
        put_off, dead = outbox.refused(self.conn, waits, step_run=self.step_run)
        self.counts.update(refused=put_off, dead=dead)

    def blames_receiver(self) -> bool:
        """Say whose fault it is that a message was not taken that was sent alone."""
        self.suspects += 1
        return not self.is_up and (self.is_failing or self.suspects > 1)

    def note(self) -> None:
        """Keep why nothing more is sent now, and until when."""
        assert self.stopped is not None  # noqa: S101 - it is called when something has stopped us
        number, error = self.subscription.number, self.stopped
        logger.warning("%s: %s", self.subscription.wanted.name, error)
        if isinstance(error, Gone):
            reason = storable(str(error))
            set_state(self.conn, self.subscription.wanted.name, State.OFF, reason=reason, by="the receiver")
            return
        failures = self.subscription.health.failures if self.subscription.health and self.is_failing else 0
        wait_s = pause_s(failures + 1, _spread(number + failures), getattr(error, "retry_after_s", None))
        for_a_person = isinstance(error, NotLetIn)
        note_failing(
            self.conn,
            number,
            storable(str(error)),
            wait_s=LONGEST_PAUSE_S if for_a_person else wait_s,
            needs_person=for_a_person,
        )

    def summary(self) -> Summary:
        name = self.subscription.wanted.name
        counts = {kind: self.counts[kind] for kind in ("delivered", "refused", "dead")}
        sentence = f"{name}: {_messages(counts['delivered'])} delivered"
        if counts["refused"]:
            sentence += f", {counts['refused']:,} refused and sent again later"
        if counts["dead"]:
            sentence += f", {counts['dead']:,} dead after the last try"
        if self.stopped:
            sentence += f"; then it took nothing: {storable(str(self.stopped))}"
        if counts["dead"] or isinstance(self.stopped, NotLetIn | Gone):
            raise DeliveryNeedsAPerson(name, sentence)
        return Summary(sentence, counts | {"stopped": int(self.stopped is not None)})


class _Batch:
    """What was claimed at once, and the search for whose fault it is where it is not taken."""

    def __init__(self, delivery: _Delivery, receiver: Receiver, claimed: Sequence[Claimed]) -> None:
        self._delivery = delivery
        self._receiver = receiver
        self._waiting = {one.number: one for one in claimed}

    def send(self) -> None:
        """Send all of it.

        Raises:
            _Stop: the receiver takes nothing now; what it was not told is given back.
        """
        parts = [list(self._waiting.values())]
        is_fresh = True
        try:
            while parts:
                part = [one for one in parts.pop() if one.number in self._waiting]
                if not is_fresh:
                    part = self._still_ours(part)
                is_fresh = False
                if part:
                    parts += self._send(part)
        except _Stop:
            outbox.give_back(self._delivery.conn, list(self._waiting), step_run=self._delivery.step_run)
            raise

    def _still_ours(self, part: Sequence[Claimed]) -> list[Claimed]:
        """Begin the lease anew; what it was too late for is somebody else's now."""
        lease_s = self._receiver.longest_s + LEASE_MARGIN_S
        ours = outbox.hold(
            self._delivery.conn, _numbers(part), lease_s=lease_s, step_run=self._delivery.step_run
        )
        self._done_with([one for one in part if one.number not in ours])
        return [one for one in part if one.number in ours]

    def _send(self, part: list[Claimed]) -> list[list[Claimed]]:
        """Send one part; return what of it, or beside it, is to be sent next, the first at the end."""
        reached("deliver.before_send")
        try:
            refusals = self._receiver.send([one.message for one in part])
        except (ContentRefused, Faulty) as error:
            return self._suspect(part, error)
        except ReceiverError as error:
            raise _Stop(error) from error
        taken = [one for one in part if one.message.id not in refusals]
        self._delivery.told(taken)
        self._delivery.refused(
            [(one, refusals[one.message.id]) for one in part if one.message.id in refusals]
        )
        self._done_with(part)
        return []

    def _suspect(self, part: list[Claimed], error: ReceiverError) -> list[list[Claimed]]:
        if len(part) > 1:
            half = len(part) // 2
            return [part[half:], part[:half]]
        self._delivery.refused([(part[0], str(error))])
        self._done_with(part)
        if self._delivery.blames_receiver():
            raise _Stop(error)
        # From the other end: neighbours are often of one task, and bad for one reason.
        return [] if self._delivery.is_up or not self._waiting else [[list(self._waiting.values())[-1]]]

    def _done_with(self, part: Sequence[Claimed]) -> None:
        for one in part:
            del self._waiting[one.number]


def _numbers(claimed: Sequence[Claimed]) -> list[int]:
    return [one.number for one in claimed]


def _messages(count: int) -> str:
    return f"{count:,} message{'' if count == 1 else 's'}"


def _spread(number: int) -> float:
    return number * GOLDEN % 1.0
