"""Metadata of files: one statement, the owner's word, until the file is published."""

from __future__ import annotations

import json
from typing import Any

import pytest
from psycopg import Connection

from asyncstageout.catalogue import file_metadata
from asyncstageout.catalogue.file_metadata import Metadata, metadata_of_task, put_metadata
from fixtures.catalogue import Add, record

TASK = "261122_alice_task"


def of(request_id: str, task: str, username: str, body: dict[str, Any]) -> Metadata:
    return Metadata(request_id, task, username, json.dumps(body))


def put(conn: Connection, *said: Metadata) -> list[tuple[str, str | None]]:
    return [(kept.outcome, kept.reason) for kept in put_metadata(conn, said, by="alice", step_run=0)]


def test_they_may_come_before_the_file(conn: Connection, add: Add) -> None:
    (answer,) = add(record(0))
    early = of("0" * 56, "later_task", "alice", {"a": 1})
    known = of(answer.request_id, TASK, "alice", {"a": 1})
    assert put(conn, early, known) == [("stored", None)] * 2
    assert put(conn, early, known._replace(body='{"a": 2}')) == [("unchanged", None), ("replaced", None)]
    assert metadata_of_task(conn, TASK, limit=9)[0][0]["body"] == {"a": 2}


def test_what_belongs_to_somebody_else_stays(conn: Connection, add: Add) -> None:
    (answer,) = add(record(0))
    put(conn, of("1" * 56, "another", "alice", {}))
    said = [
        of(answer.request_id, TASK, "bob", {}),
        of("1" * 56, "another", "bob", {}),
        of("2" * 56, TASK, "bob", {}),
        of(answer.request_id, "another", "alice", {}),
    ]
    outcomes = [put(conn, one)[0] for one in said]
    assert [outcome for outcome, _ in outcomes] == ["refused"] * 4
    assert outcomes[3][1] == f"the file belongs to another task: {TASK}"


def test_what_is_published_stays_as_it_is(conn: Connection, add: Add) -> None:
    (answer,) = add(record(0, publish=True))
    said = of(answer.request_id, TASK, "alice", {"a": 1})
    put(conn, said)
    conn.execute("UPDATE transfer SET publication = 'DONE'")
    assert put(conn, said) == [("unchanged", None)]
    assert put(conn, said._replace(body="{}")) == [("refused", "the file is published")]


def test_a_page_ends_where_it_gets_large(conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    put(conn, *(of(f"{number:056d}", TASK, "alice", {"n": number}) for number in range(5)))
    monkeypatch.setattr(file_metadata, "PAGE_BYTES", 1)
    page, more = metadata_of_task(conn, TASK, limit=5, after=f"{1:056d}")
    assert more
    assert [row["body"]["n"] for row in page] == [2]


def test_a_thousand_records_are_kept_in_one_go(conn: Connection) -> None:
    said = [of(f"{number:056d}", TASK, "alice", {"n": number}) for number in range(1000)]
    assert set(put(conn, *said)) == {("stored", None)}
    page, more = metadata_of_task(conn, TASK, limit=1000)
    assert (len(page), more) == (1000, False)
