"""What a later retry of a job may make of a file: every path legal, nothing published twice."""

from __future__ import annotations

import itertools

import pytest

from asyncstageout.core.crab import INSERTED
from asyncstageout.core.reinjections import REINJECTIONS, REPUBLICATIONS
from asyncstageout.core.states import IN_FLIGHT_STATES, PublicationState, TransferState, is_legal

P = PublicationState
S = TransferState


@pytest.mark.parametrize(("pair", "path"), REINJECTIONS.items(), ids=str)
def test_every_path_is_legal(pair: tuple[S, S], path: tuple[S, ...]) -> None:
    for start, end in itertools.pairwise((pair[0], *path)):
        assert is_legal(start, end)
    assert pair[1] in INSERTED
    assert not path or path[-1] == pair[1]


def test_nothing_that_fts_may_have_is_sent_again() -> None:
    known = {state for state, _ in REINJECTIONS}
    assert known == set(S) - {S.SUBMITTED, S.KILL}
    # Only of a worker of CRAB, which the catalogue makes sure of.
    assert known & IN_FLIGHT_STATES == {S.ACQUIRED}
    assert {state for state, said in REINJECTIONS if said is S.DONE} == known


def test_what_is_published_stays_so_and_what_is_not_is_asked_anew() -> None:
    assert REPUBLICATIONS[P.DONE] == (P.DONE, P.DONE)
    assert set(REPUBLICATIONS) == set(P), (
        "of what is in a closed block the catalogue says that it has to end first"
    )
    others = {then for was, then in REPUBLICATIONS.items() if was is not P.DONE}
    assert others == {(P.NOT_REQUIRED, P.NEW)}
