"""What the client of DBS asks, and what it makes of silence, halves and pages."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from asyncstageout.clients.dbs import LFNS_PER_REQUEST, DBSClient, DBSReader
from asyncstageout.clients.dbs_errors import (
    RULES,
    BlockTooLarge,
    DBSBadAnswer,
    DBSError,
    DBSNotAuthorised,
    DBSNotFound,
    DBSRefused,
    DBSUnavailable,
    DBSUnreachable,
    DBSUntrusted,
    MigrationRefused,
)
from asyncstageout.clients.errors import Transient
from asyncstageout.clients.http import Access, Patience, new_session
from asyncstageout.core.dbs_answers import FAILED, QUEUED
from asyncstageout.sandbox.serving import running, server
from clients.answering import AnsweringServer, Asked, Reply, answering, in_turn
from sandbox.harness import certificates

TRIES = Patience(tries=3, connect_s=2, read_s=5, deadline_s=10)
SHORT = Patience(tries=3, connect_s=2, read_s=0.2, deadline_s=10)
BLOCK = "/QCD/rossi-skim-00112233445566778899aabbccddeeff/USER#0-1"
SOURCE = "https://dbs.example/dbs/prod/global/DBSReader"
HTML = Reply(200, b"<html>sign in</html>", {"Content-Type": "text/html"})


@contextmanager
def client_of(
    respond: Callable[[Asked], Reply], patience: Patience = TRIES
) -> Iterator[tuple[DBSClient, AnsweringServer]]:
    with (
        answering(respond) as told,
        DBSClient(
            f"{told.url}/x/DBSWriter/", new_session(), patience=patience, sleep=lambda _s: None
        ) as client,
    ):
        yield client, told


def as_json(value: object, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value).encode())


def refusal(reason: str, status: int = 400, code: int = 110) -> Reply:
    error = {"reason": reason, "message": "", "function": "dbs.x", "code": code, "stacktrace": "goroutine 1"}
    return as_json([{"error": error, "http": {"code": status}, "exception": status}], status)


def row_of(lfn: str) -> dict[str, Any]:
    return {
        "logical_file_name": lfn,
        "block_name": BLOCK,
        "dataset": BLOCK.partition("#")[0],
        "file_size": 1,
        "adler32": "1a",
        "is_file_valid": 1,
    }


def query(asked: Asked) -> dict[str, list[str]]:
    return parse_qs(urlsplit(asked.path).query)


# --- what is asked ---


def test_the_other_servers_are_the_writers_neighbours() -> None:
    client = DBSClient("https://dbs.example/dbs/prod/phys03/DBSWriter/", new_session())
    assert client.writer_url == "https://dbs.example/dbs/prod/phys03/DBSWriter"
    assert client.reader_url == "https://dbs.example/dbs/prod/phys03/DBSReader"
    assert client.migrate_url == "https://dbs.example/dbs/prod/phys03/DBSMigrate"
    other = DBSClient("https://a/w", new_session(), reader_url="https://b/r/", migrate_url="https://c/m")
    assert (other.reader_url, other.migrate_url) == ("https://b/r", "https://c/m")


def test_files_are_asked_for_many_at_a_time_and_each_once() -> None:
    lfns = [f"/store/user/rossi/a/b_{number}.root" for number in range(LFNS_PER_REQUEST + 1)]

    def every_other(asked: Asked) -> Reply:
        names = json.loads(asked.body)["logical_file_name"]
        return as_json([row_of(lfn) for lfn in names if not lfn.endswith("1.root")])

    with client_of(every_other) as (client, told):
        found = client.files([*lfns, *lfns[:5], "/store/[1]", "/store/a b", "not an LFN"])
        blocks = client.blocks_of_files(lfns[:3])
    assert list(found) == [lfn for lfn in lfns if not lfn.endswith("1.root")]
    assert blocks == {lfns[0]: BLOCK, lfns[2]: BLOCK}
    assert [asked.path for asked in told.asked] == ["/x/DBSReader/fileArray"] * 3
    bodies = [json.loads(asked.body) for asked in told.asked]
    assert [len(body["logical_file_name"]) for body in bodies] == [LFNS_PER_REQUEST, 1, 3]
    assert all(body["detail"] is True for body in bodies)


def test_nothing_is_asked_about_no_files() -> None:
    with client_of(in_turn(as_json([]))) as (client, told):
        assert client.files(["/store/*"]) == {}
    assert told.asked == []


def test_a_block_is_asked_of_the_writer_and_a_dataset_of_the_reader() -> None:
    with client_of(in_turn(as_json([]))) as (client, told):
        assert not client.block_exists(BLOCK)
        assert not client.dataset_exists("/a/b-c/USER")
        with DBSReader(f"{told.url}/y/DBSReader", new_session()) as reader:
            assert reader.block(BLOCK) is None
    paths = [urlsplit(asked.path).path for asked in told.asked]
    assert paths == ["/x/DBSWriter/blocks", "/x/DBSReader/datasets", "/y/DBSReader/blocks"]
    assert query(told.asked[0]) == {"block_name": [BLOCK], "detail": ["true"]}
    # Without this one DBS says of a dataset that is not VALID that there is none.
    assert query(told.asked[1])["dataset_access_type"] == ["*"]


def test_a_body_goes_as_it_is() -> None:
    with client_of(in_turn(as_json([]))) as (client, told):
        client.insert_block({"block": {"block_name": "ü"}})
        client.insert_block(b'{"block": 1}')
    assert [asked.body for asked in told.asked] == [b'{"block":{"block_name":"\\u00fc"}}', b'{"block": 1}']


def test_every_server_says_what_it_is() -> None:
    with client_of(in_turn(as_json([{"server": "dbs2go", "dbs_version": "v1"}]))) as (client, _told):
        infos = client.server_infos()
    assert [urlsplit(url).path for url in infos] == ["/x/DBSWriter", "/x/DBSReader", "/x/DBSMigrate"]
    assert {info.version for info in infos.values()} == {"v1"}


# --- silence and halves ---


@pytest.mark.parametrize("instead", ["silence", "reset", "cut"])
def test_a_block_is_not_sent_again_after_a_silence(instead: Any) -> None:
    with client_of(in_turn(Reply(200, b"[  ]", instead=instead)), SHORT) as (client, told):
        with pytest.raises(DBSUnreachable) as caught:
            client.insert_block(b"{}")
        assert caught.value.maybe_delivered
        assert len(told.asked) == 1


@pytest.mark.parametrize("instead", ["silence", "reset", "cut"])
def test_what_is_read_is_asked_again_after_a_silence(instead: Any) -> None:
    replies = (Reply(200, b"[  ]", instead=instead), as_json([row_of("/store/a")]))
    with client_of(in_turn(*replies), SHORT) as (client, told):
        assert list(client.files(["/store/a"])) == ["/store/a"]
        assert len(told.asked) == 2


def test_what_never_arrived_is_sent_again_and_says_so() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/x/DBSWriter"
        waits: list[float] = []
        with (
            DBSClient(url, new_session(), patience=TRIES, sleep=waits.append) as client,
            pytest.raises(DBSUnreachable) as caught,
        ):
            client.insert_block(b"{}")
    assert not caught.value.maybe_delivered
    assert len(waits) == 2


def test_a_server_that_nobody_vouches_for(tmp_path: Path) -> None:
    ours, others = certificates(tmp_path / "ours"), certificates(tmp_path / "others")

    async def nothing(_scope: Any, _receive: Any, _send: Any) -> None:
        raise AssertionError

    with running(server(nothing, tls=others.server, client_ca=others.ca)) as port:
        url = f"https://127.0.0.1:{port}/x/DBSWriter"
        with (
            DBSClient(url, new_session(Access(ca=str(ours.ca))), patience=TRIES) as client,
            pytest.raises(DBSUntrusted),
        ):
            client.insert_block(b"{}")


@pytest.mark.parametrize(
    "reply",
    [
        HTML,
        Reply(200, b""),
        Reply(200, b"[\n{}"),
        # dbs2go sends rows as it finds them; what goes wrong then stands behind them.
        Reply(200, b'[\n{"block_name": "a"}' + refusal("ORA-03113").body),
        as_json({}),
        as_json([{}]),
        as_json([row_of("/store/a")] * 2),
        Reply(302, b"", {"Location": "https://login.example/"}),
    ],
)
def test_a_success_that_is_none(reply: Reply) -> None:
    with client_of(in_turn(reply)) as (client, told):
        with pytest.raises(DBSBadAnswer):
            client.block(BLOCK)
        with pytest.raises(DBSBadAnswer):
            client.insert_block(b"{}")
        with pytest.raises(DBSBadAnswer):
            client.server_info()
        assert len(told.asked) == 3


@pytest.mark.parametrize(
    ("reply", "error", "tries"),
    [
        (Reply(401), DBSNotAuthorised, 1),
        (Reply(403, b"<html>no</html>"), DBSNotAuthorised, 1),
        (Reply(404), DBSNotFound, 1),
        (Reply(405), DBSNotFound, 1),
        (Reply(413, b"<html>too large</html>"), BlockTooLarge, 1),
        (Reply(415), DBSRefused, 1),
        # It may be there already.
        (Reply(500), DBSUnavailable, 1),
        (Reply(502, b"<html>bad gateway</html>"), DBSUnavailable, 1),
        (Reply(503, b"", {"Retry-After": "0"}), DBSUnavailable, 1),
        # The front's own 400.
        (Reply(400, b"<html>bad request</html>"), DBSUnavailable, 1),
        # Before anything else of dbs2go.
        (Reply(429), DBSUnavailable, 3),
    ],
)
def test_what_stands_before_dbs(reply: Reply, error: type[DBSError], tries: int) -> None:
    with client_of(in_turn(reply)) as (client, told):
        with pytest.raises(error) as caught:
            client.insert_block(b"{}")
        assert type(caught.value) is error
        assert len(told.asked) == tries
    if isinstance(caught.value, Transient):
        assert caught.value.maybe_delivered is (tries == 1)


def test_a_word_of_ours_does_not_pass_for_one_of_dbs() -> None:
    """What the user named is in the message of an error; the rules look for sentences, not for words."""
    reason = "invalid pattern for block name: /UNIQUE/a-driver/USER#concurrency"
    with client_of(in_turn(refusal(reason))) as (client, _told), pytest.raises(DBSError) as caught:
        client.insert_block(b"{}")
    assert type(caught.value) is RULES["bulkblocks"][-1].error


# --- migrations ---

DETAILS = {
    "migration_request_id": 7,
    "migration_input": BLOCK,
    "migration_url": SOURCE,
    "migration_status": QUEUED,
    "retry_count": 0,
}


def migrate(submit: Reply, *status: Reply) -> Callable[[Asked], Reply]:
    state = in_turn(*status)
    return lambda asked: submit if asked.path.endswith("/submit") else state(asked)


def test_a_migration_is_asked_for() -> None:
    report = {"migration_report": "Migration request is started", "migration_details": DETAILS}
    with client_of(migrate(as_json([report]))) as (client, told):
        migration = client.submit_migration(SOURCE, BLOCK)
    assert (migration.request_id, migration.state, migration.block_name) == (7, QUEUED, BLOCK)
    assert (told.asked[0].path, json.loads(told.asked[0].body)) == (
        "/x/DBSMigrate/submit",
        {"migration_url": SOURCE, "migration_input": BLOCK},
    )


def test_one_that_was_asked_for_before_is_an_answer() -> None:
    asked = refusal(f"migration request {BLOCK} is already exist in DB with id=7", code=125)
    failed = {**DETAILS, "migration_status": FAILED, "retry_count": 2}
    with client_of(migrate(asked, as_json([failed]))) as (client, told):
        migration = client.submit_migration(SOURCE, BLOCK)
    assert (migration.request_id, migration.state, migration.retries) == (7, FAILED, 2)
    assert query(told.asked[1]) == {"migration_rqst_id": ["7"]}


def test_of_several_that_were_asked_for_the_last_from_that_source_counts() -> None:
    """A second request while the first is queued gets a success with a number that no request has."""
    report = {"migration_report": "Migration insert error", "migration_details": {"migration_request_id": 99}}
    rows = [
        {**DETAILS, "migration_request_id": number, "migration_url": url}
        for number, url in ((3, SOURCE), (5, SOURCE), (6, "https://other.example/DBSReader"))
    ]
    with client_of(migrate(as_json([report]), as_json(rows))) as (client, told):
        assert client.submit_migration(SOURCE, BLOCK).request_id == 5
    assert query(told.asked[1]) == {"migration_input": [BLOCK]}


def test_one_that_was_asked_for_and_is_gone_is_asked_for_again_later() -> None:
    asked = refusal(f"migration request {BLOCK} is already exist in DB with id=7", code=125)
    with client_of(migrate(asked, as_json([]))) as (client, _told):
        with pytest.raises(DBSUnavailable) as caught:
            client.submit_migration(SOURCE, BLOCK)
        assert not caught.value.maybe_delivered
        assert client.migration(7) is None


@pytest.mark.parametrize(
    ("reason", "error", "tries"),
    [
        (f"dataset of {BLOCK} with access type PRODUCTION is not allowed for migration", MigrationRefused, 1),
        ("ORA-00001: unique constraint", "DBSRace", 3),
        ("DBSError Code:124 Description: HTTP", "DBSUnavailable", 3),
    ],
)
def test_a_migration_that_is_refused(reason: str, error: Any, tries: int) -> None:
    with client_of(migrate(refusal(reason))) as (client, told):
        with pytest.raises(DBSError) as caught:
            client.submit_migration(SOURCE, BLOCK)
        assert error in (type(caught.value), type(caught.value).__name__)
        assert len(told.asked) == tries


def test_one_is_removed_once() -> None:
    with client_of(in_turn(as_json([]), refusal("request is not found"))) as (client, told):
        client.remove_migration(7)
        with pytest.raises(DBSRefused):
            client.remove_migration(7)
    assert [json.loads(asked.body) for asked in told.asked] == [{"migration_rqst_id": 7}] * 2
