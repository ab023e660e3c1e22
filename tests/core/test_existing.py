"""A file in the way is identified by size and checksum, and never overwritten on a guess."""

from __future__ import annotations

import pytest

from asyncstageout.core.existing import Content, Existing, identify

WANTED = Content(1000, "0000abcd")
SAME, WRONG, HALF, UNKNOWN = WANTED, Content(1000, "0000ffff"), Content(17, "0000abcd"), Content(None, None)
NO_SUM = Content(1000, None)
OURS, LEFT_OVER, FOREIGN = Existing.OURS, Existing.LEFT_OVER, Existing.FOREIGN


@pytest.mark.parametrize(
    ("found", "previous", "overwrote", "allowed", "verdict"),
    [
        (SAME, None, False, True, OURS),
        (SAME, "transfer", False, False, OURS),
        # The first attempt left nothing, so it is somebody else's.
        (WRONG, None, False, True, FOREIGN),
        (UNKNOWN, None, False, True, FOREIGN),
        # After an attempt that may have written.
        (WRONG, "transfer", False, True, LEFT_OVER),
        (HALF, "destination", False, True, LEFT_OVER),
        (NO_SUM, "lost", False, True, LEFT_OVER),
        (UNKNOWN, "destination-checksum", False, True, LEFT_OVER),
        # After one that wrote nothing.
        (WRONG, "queue-timeout", False, True, FOREIGN),
        (WRONG, "source", False, True, FOREIGN),
        # The operator does not want it; it was tried; it is on tape.
        (WRONG, "transfer", False, False, FOREIGN),
        (WRONG, "destination-exists", True, True, FOREIGN),
        (WRONG, "transfer", True, True, FOREIGN),
    ],
)
def test_verdicts(
    found: Content, previous: str | None, overwrote: bool, allowed: bool, verdict: Existing
) -> None:
    said = identify(WANTED, found, previous=previous, overwrote=overwrote, overwrite_wrong=allowed)
    assert said is verdict


def test_without_a_checksum_in_the_request_nothing_is_proven() -> None:
    said = identify(NO_SUM, NO_SUM, previous=None, overwrote=False, overwrite_wrong=True)
    assert said is FOREIGN
