"""What operators see of temporary copies, and the numbers of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from psycopg import Connection

from api.conftest import API, OPERATOR
from asyncstageout.catalogue.cleaning import Word, claim, due_copies, pause_site, settle, take_site
from asyncstageout.catalogue.sweeps import begin_or_go_on
from asyncstageout.core.cleaning import Outcome
from asyncstageout.core.states import TransferState
from fixtures.catalogue import Add, Plan, record
from fixtures.cleaning import end

V1 = "/api/v1"
BARI = "T2_IT_Bari"


def test_an_operator_sees_what_waits_where(
    api: API, conn: Connection, *, add: Add, submitted: Plan, step: int
) -> None:
    add(*(record(number) for number in range(5)))
    submitted()
    end(conn, step, TransferState.DONE)
    copies = claim(conn, due_copies(conn, BARI, at_most=2), step_run=step, lease_s=60)
    later = datetime.now(UTC) + timedelta(days=7)
    settle(conn, [Word(copy, Outcome.FAILED, 4, later, "se.test", "no") for copy in copies], step)
    take_site(conn, BARI, step_run=step, lease_s=60)
    pause_site(conn, BARI, until=later, reason="silent")
    begin_or_go_on(conn, BARI, older_than_days=30, roots=["/store/temp/user/"], step_run=step)
    client = api(OPERATOR)
    (site,) = client.get(f"{V1}/cleaning", params={"site": BARI}).json()
    assert (site["due"], site["due_bytes"], site["failed"], site["reason"]) == (3, 3009, 2, "silent")
    assert client.get(f"{V1}/cleaning", params={"site": "T2_US_MIT"}).json() == []
    assert len(client.get(f"{V1}/cleaning/failed", params={"limit": 1}).json()) == 1
    (sweep,) = client.get(f"{V1}/cleaning/sweeps").json()
    assert (sweep["site"], sweep["ended_at"], sweep["orphans"]) == (BARI, None, 0)
    lines = client.get(f"{V1}/metrics").text.splitlines()
    assert {
        "stageout_copies_due 3",
        f'stageout_copies_given_up{{site="{BARI}"}} 2',
        "stageout_storages_silent 1",
    } <= set(lines)
