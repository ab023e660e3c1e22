"""Whoever works on files and on their temporary copies, in any interleaving: no file on its way loses its source."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test
from psycopg import Connection

from asyncstageout.catalogue.cleaning import Word, claim, due_copies, settle
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.retries_by_people import retry_files
from asyncstageout.core.cleaning import Outcome
from asyncstageout.core.selections import Selection
from asyncstageout.steps import reconcile
from catalogue.test_properties import FILES, House

LONG = bool(os.environ.get("ASO_LONG_TESTS"))
PLAY = settings(
    max_examples=200 if LONG else 5,
    stateful_step_count=60 if LONG else 25,
    derandomize=not LONG,
    deadline=None,
    database=None,
    phases=tuple(Phase) if LONG else (Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
BARI = "T2_IT_Bari"


class CleaningHouse(House):
    """The house of ``test_properties``, with a storage from which copies are deleted, and people who retry."""

    def __init__(self, one: Connection, other: Connection, observer: Connection) -> None:
        super().__init__(one, other, observer)
        self.deleted: set[int] = set()
        """Files whose copy the storage has deleted: whoever claims a copy may do that, until its claim ends."""

    def claim_copies(self, conn: Connection, n: int) -> None:
        claim(conn, due_copies(conn, BARI, at_most=n + 1), step_run=self.step, lease_s=3600)

    def settle_copies(self, conn: Connection, n: int) -> None:
        conn.execute("UPDATE cleaning SET due_at = now() WHERE state = 'DELETING'")
        copies = [
            copy for copy in due_copies(conn, BARI, at_most=FILES) if self._is_claimed(conn, copy.transfer_id)
        ]
        ends = (Outcome.LEFT, Outcome.WAITING, Outcome.FAILED)
        words = [
            Word(
                copy, Outcome.GONE if copy.transfer_id in self.deleted else ends[n % 3], 1, datetime.now(UTC)
            )
            for copy in copies
        ]
        settle(conn, words, self.step)

    def _is_claimed(self, conn: Connection, number: int) -> bool:
        row = conn.execute("SELECT state FROM cleaning WHERE transfer_id = %s", (number,)).fetchone()
        return row == ("DELETING",)

    def claims_end(self, conn: Connection, n: int) -> None:
        conn.execute("UPDATE cleaning SET due_at = now() WHERE state = 'DELETING'")

    def people_retry(self, conn: Connection, n: int) -> None:
        retry_files(
            conn, Selection(username="alice"), None, comment="", step_run=self.step, killed_too=n % 2 == 0
        )

    CLEANING = (claim_copies, claim_copies, settle_copies, claims_end, people_retry)
    cleaning = st.tuples(st.sampled_from(CLEANING), st.integers(0, FILES - 1))
    anything = st.tuples(st.sampled_from(CLEANING + House.OPERATIONS), st.integers(0, FILES - 1))

    @rule(what=cleaning, dies=House.deaths)
    def clean_alone(self, what: tuple[Any, int], dies: bool) -> None:
        self._in_transaction(self.one, what, dies)

    @rule(first=cleaning, second=anything, dies=House.deaths)
    def clean_beside(self, first: tuple[Any, int], second: tuple[Any, int], dies: bool) -> None:
        self.beside(first=first, second=second, dies=dies)

    @rule(first=anything, second=cleaning, dies=House.deaths)
    def beside_cleaning(self, first: tuple[Any, int], second: tuple[Any, int], dies: bool) -> None:
        self.beside(first=first, second=second, dies=dies)

    @rule(n=st.integers(0, FILES - 1), second=st.sampled_from([people_retry, House.redrive, claim_copies]))
    def what_failed_is_claimed_deleted_and_wanted_again(self, n: int, second: Any) -> None:
        """All in a row what matters most, which chance alone would seldom bring together."""
        self.cycle(self.one, FILES)
        self.refuse(self.one, n)
        self.beside(first=(CleaningHouse.claim_copies, FILES), second=(second, n), dies=False)
        self.the_storage_deletes()
        self.people_retry(self.one, n)
        self.redrive(self.one, n)

    @rule()
    def the_storage_deletes(self) -> None:
        """What was claimed, and committed, may be gone at any moment from then on."""
        self.deleted |= {
            number
            for (number,) in self.observer.execute(
                "SELECT transfer_id FROM cleaning WHERE state = 'DELETING'"
            )
        }

    @invariant()
    def no_file_on_its_way_has_lost_its_source(self) -> None:
        live = self.observer.execute("SELECT id FROM transfer WHERE ended_at IS NULL").fetchall()
        assert {number for (number,) in live} & self.deleted == set()


def test_no_interleaving_takes_a_source_from_a_file(
    conn: Connection, catalogue_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "IN_DOUBT_S", -1.0)
    with connect(catalogue_url) as other, connect(catalogue_url) as observer:
        run_state_machine_as_test(lambda: CleaningHouse(conn, other, observer), settings=PLAY)  # type: ignore[no-untyped-call]
