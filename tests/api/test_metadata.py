"""Metadata of files over REST: kept until they are published, for the publisher page by page."""

from __future__ import annotations

from typing import Any

from psycopg import Connection

from api.conftest import ALICE, API, BOB, SERVICE
from asyncstageout.core.naming import request_id
from fixtures.catalogue import Add, record

URL = "/api/v1/file-metadata"


def said(number: int = 0, **changes: Any) -> dict[str, Any]:
    source_lfn = record(number)["source_lfn"]
    return {"source_lfn": source_lfn, "task": "261122_alice_task", "body": {"events": number}} | changes


def outcomes(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [one["outcome"] for one in answer.json()["results"]]


def test_records_are_stored_and_replaced(api: API, add: Add) -> None:
    add(record(0))
    alice = api(ALICE)
    assert outcomes(alice.put(URL, json=[said(0), said(1)])) == ["stored", "stored"]
    assert outcomes(alice.put(URL, json=[said(0), said(1, body={})])) == ["unchanged", "replaced"]
    assert outcomes(alice.put(URL, json=[said(2, body={}), said(2)])) == ["refused", "stored"]


def test_what_cannot_be_kept_is_refused_alone(api: API, conn: Connection, add: Add) -> None:
    add(record(0), record(3, publish=True))
    conn.execute("UPDATE transfer SET publication = 'DONE' WHERE publication = 'NEW'")
    records = [
        said(0, username="bob"),
        said(1, body={"a": "\0"}),
        said(1, body={"a": "x" * 2_000_000}),
        said(3),
        said(0, task="261122_other"),
        said(0),
    ]
    answer = api(ALICE).put(URL, json=records)
    assert outcomes(answer) == ["refused"] * 5 + ["stored"]
    reasons = [one["reason"] for one in answer.json()["results"]]
    assert reasons[0] == "alice may not act for bob"
    assert reasons[3] == "the file is published"


def test_nobody_speaks_for_anothers_file(api: API, add: Add) -> None:
    add(record(0))
    assert outcomes(api(BOB).put(URL, json=[said(0)])) == ["refused"]
    assert outcomes(api(SERVICE).put(URL, json=[said(0, username="alice")])) == ["stored"]
    assert outcomes(api(BOB).put(URL, json=[said(0, task="261122_bob_task")])) == ["refused"]


def test_the_publisher_reads_a_task_page_by_page(api: API, add: Add) -> None:
    add(record(0))
    api(ALICE).put(URL, json=[said(number) for number in range(5)])
    query: dict[str, Any] = {"task": "261122_alice_task", "limit": 2}
    met: list[str] = []
    while True:
        page = api(ALICE).get(URL, params=query).json()
        met += [one["request_id"] for one in page["file_metadata"]]
        if not page["next_cursor"]:
            break
        query["cursor"] = page["next_cursor"]
    assert met == sorted(request_id(record(number)["source_lfn"]) for number in range(5))
    assert api(BOB).get(URL, params=query).status_code == 404
