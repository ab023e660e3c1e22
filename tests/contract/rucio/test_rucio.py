"""The stand-in answers as a real Rucio did; the client registers what it should, over rucio-clients and HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rucio.client import Client
from rucio.common import exception as rucio_exceptions
from rucio.common.exception import RucioException

from asyncstageout.clients.receivers import ContentRefused, Failing, Faulty, NotLetIn
from asyncstageout.clients.rucio_catalogue import VERDICTS, RucioCatalogue, verdict_on
from asyncstageout.core.deliveries import File, Message
from asyncstageout.core.rucio_names import dataset_of
from asyncstageout.core.subscriptions import RucioSettings
from clients.answering import AnsweringServer, Asked
from contract.rucio.record import QUESTIONS, Question
from contract.rucio.server import StandIn, Wrong, serving

RECORDED = json.loads((Path(__file__).with_name("recordings.json")).read_text())
READ = ("scope", "name", "bytes", "adler32", "deterministic", "rse")
"""Fields of rows that the client looks at."""
BLOCK = "/Prim/alice-Proc-v1/USER#22222222-2222-2222-2222-222222222222"
TASKS = "/AsyncStageOut/alice-261122_alice_task/USER#f709fa41-912d-5938-b98b-520338362edb"


def rows(text: str) -> list[dict[str, Any]]:
    return [{name: row.get(name) for name in READ} for row in map(json.loads, text.splitlines())]


def test_the_stand_in_answers_as_the_real_one() -> None:
    stand_in = StandIn()
    assert [one["label"] for one in RECORDED] == [question.label for question in QUESTIONS]
    for question, recorded in zip(QUESTIONS, RECORDED, strict=True):
        reply = stand_in.respond(_asked(question))
        label = question.label
        assert (reply.status, reply.headers.get("ExceptionClass")) == (
            recorded["status"], recorded["exception"]
        ), label  # fmt: skip
        if "json" in (recorded["type"] or ""):
            assert rows(reply.body.decode()) == rows(recorded["body"]), label
            assert reply.headers["Content-Type"] == recorded["type"], label


def _asked(question: Question) -> Asked:
    body = b"" if question.body is None else json.dumps(question.body).encode()
    return Asked(question.method, question.path, {}, body)


# --- the client ---


@pytest.fixture
def rucio() -> StandIn:
    return StandIn()


@pytest.fixture
def server(rucio: StandIn) -> Iterator[AnsweringServer]:
    with serving(rucio) as server:
        yield server


@pytest.fixture
def catalogue(server: AnsweringServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RucioCatalogue:
    return opened(server, monkeypatch, tmp_path)


def opened(
    server: AnsweringServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **settings: Any
) -> RucioCatalogue:
    # Tokens are kept per user and account, not per server.
    monkeypatch.setattr(Client, "TOKEN_PATH_PREFIX", str(tmp_path / "token_"))
    client = Client(
        rucio_host=server.url, auth_host=server.url, account="root", auth_type="userpass", timeout=5,
        creds={"username": "aso", "password": "secret"},
    )  # fmt: skip
    return RucioCatalogue(client, RucioSettings(**settings), errors=RucioException, server="rucio")


def message(number: int, **changes: Any) -> Message:
    user = changes.get("username", "alice")
    fields = {
        "number": number, "request_id": f"{number:056x}", "task": f"261122_{user}_task", "username": user,
        "source": "T2_IT_Bari", "destination": "T2_CH_CERN", "source_lfn": "/store/temp/user/a/b.root",
        "destination_lfn": f"/store/user/{user}/mc/out_{number}.root", "size_bytes": 1000 + number,
        "adler32": f"{number:08x}", "file_type": "output", "job_id": "", "job_retry_count": 0, "attempt": 1,
        "fts_job_id": None, "fts_server": None, "destination_url": None, "block": None,
    } | changes  # fmt: skip
    return Message(
        id=f"transfer-{number}", type="transfer.done", timestamp=datetime.now(UTC), state="DONE", reason=None,
        data=File(**fields),
    )  # fmt: skip


def names(numbers: range) -> set[tuple[str, str]]:
    return {("user.alice", f"/store/user/alice/mc/out_{number}.root") for number in numbers}


def test_files_become_replicas_in_the_dataset_of_their_task(
    rucio: StandIn, catalogue: RucioCatalogue
) -> None:
    files = [message(number) for number in range(20)]
    for _ in range(2):
        assert catalogue.send(files) == {}
    assert rucio.replicas == {("T2_CH_CERN", did) for did in names(range(20))}
    assert rucio.datasets == {("user.alice", TASKS): names(range(20))}
    # The RSE and the dataset are known the second time.
    bulk = ["POST /replicas", "POST /dids/bulkmeta", "POST /dids/attachments"]
    assert [call.rstrip("/") for call in rucio.calls] == [
        "GET /rses/T2_CH_CERN", *bulk[:2], "POST /dids", bulk[2], *bulk
    ]  # fmt: skip


def test_a_published_file_is_in_the_dataset_of_its_block(rucio: StandIn, catalogue: RucioCatalogue) -> None:
    assert catalogue.send([message(1)]) == {}
    assert catalogue.send([message(1, block=BLOCK)]) == {}
    assert rucio.datasets == {
        ("user.alice", TASKS): names(range(1, 2)),
        ("user.alice", BLOCK): names(range(1, 2)),
    }


def test_one_users_or_sites_fault_is_not_the_others(rucio: StandIn, catalogue: RucioCatalogue) -> None:
    refused = catalogue.send(
        [message(1), message(2, username="bob"), message(3, destination="T2_XX_No"), message(4, size_bytes=0)]
    )
    assert {one: why.split(":")[0] for one, why in refused.items()} == {
        "transfer-2": "ScopeNotFound", "transfer-3": "RSENotFound", "transfer-4": "its size is not known",
    }  # fmt: skip
    assert set(rucio.files) == names(range(1, 2))


def test_other_bytes_under_a_known_name_are_not_passed_over(
    rucio: StandIn, catalogue: RucioCatalogue
) -> None:
    assert catalogue.send([message(1), message(2)]) == {}
    refused = catalogue.send([message(1, size_bytes=7), message(2, adler32="ffffffff"), message(3)])
    assert set(refused) == {"transfer-1", "transfer-2"}
    assert "with 1001 bytes and adler32 00000001, not with 7 and 00000001" in refused["transfer-1"]
    assert catalogue.send([message(5, adler32=None)]) == {}
    assert catalogue.send([message(5)]) == {}, "it has no checksum there to compare"


def test_many_users_are_one_call_unless_one_of_them_is_refused(
    rucio: StandIn, catalogue: RucioCatalogue
) -> None:
    users = [f"user{number}" for number in range(6)]
    rucio.scopes = {f"user.{user}" for user in users}
    files = [message(number, username=user) for number, user in enumerate(users)]
    assert catalogue.send(files) == {}
    assert len(rucio.datasets) == 6
    assert len(rucio.calls) == 5
    newcomer = message(7, username=users[0], task="another")
    rucio.datasets["user.user0", dataset_of(RucioSettings().dataset, "user0", "another")] = set()
    assert catalogue.send([*files, newcomer, message(8, username="bob")]).keys() == {"transfer-8"}
    rucio.closed = {next(iter(rucio.datasets))}
    closed_for = next(iter(rucio.datasets))[0].removeprefix("user.")
    more = [
        message(10 + number, username=user, task=files[number].data.task) for number, user in enumerate(users)
    ]
    assert catalogue.send(more).keys() == {f"transfer-{10 + users.index(closed_for)}"}


def test_a_group_has_a_scope_and_logs_are_left_out(rucio: StandIn, catalogue: RucioCatalogue) -> None:
    rucio.scopes.add("group.higgs")
    lfn = "/store/group/rucio/higgs/out_1.root"
    assert catalogue.send([message(1, destination_lfn=lfn), message(2, file_type="log")]) == {}
    assert set(rucio.files) == {("group.higgs", lfn)}


def test_only_a_storage_that_is_not_deterministic_is_told_the_pfn(
    rucio: StandIn, server: AnsweringServer, catalogue: RucioCatalogue
) -> None:
    url = "davs://t3-us-tape.example.org:443/cms/store/user/alice/mc/out_1.root"
    files = [message(1, destination="T3_US_Tape", destination_url=url), message(2, destination_url=url)]
    assert catalogue.send(files) == {}
    sent = [json.loads(asked.body) for asked in server.asked if asked.path.startswith("/replicas")]
    assert {one["rse"]: one["files"][0].get("pfn") for one in sent} == {"T3_US_Tape": url, "T2_CH_CERN": None}
    with pytest.raises(ContentRefused, match="PFN needed"):
        catalogue.send([message(3, destination="T3_US_Tape")])


def test_a_closed_dataset_takes_what_is_in_it_and_nothing_else(
    rucio: StandIn, catalogue: RucioCatalogue
) -> None:
    assert catalogue.send([message(1, block=BLOCK)]) == {}
    rucio.closed.add(("user.alice", BLOCK))
    assert catalogue.send([message(1, block=BLOCK)]) == {}
    refused = catalogue.send([message(number, block=BLOCK) for number in (1, 2)])
    assert list(refused) == ["transfer-2"]
    assert "is closed" in refused["transfer-2"]


def test_who_may_not_make_a_dataset_is_refused_alone(
    rucio: StandIn, catalogue: RucioCatalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    rucio.scopes.add("user.bob")
    make = rucio.add_datasets

    def make_no_dataset_of_bobs(body: list[dict[str, Any]]) -> Any:
        if any(one["scope"] == "user.bob" for one in body):
            raise Wrong(401, "AccessDenied", "no")
        return make(body)

    monkeypatch.setattr(rucio, "add_datasets", make_no_dataset_of_bobs)
    refused = catalogue.send([message(1), message(2, username="bob")])
    assert refused.keys() == {"transfer-2"}
    assert "AccessDenied" in refused["transfer-2"]
    assert rucio.datasets == {("user.alice", TASKS): names(range(1, 2))}


def test_two_messages_about_one_name_are_one_replica(rucio: StandIn, catalogue: RucioCatalogue) -> None:
    same = message(1).data.destination_lfn
    again = message(2, destination_lfn=same, size_bytes=1001, adler32="00000001")
    assert catalogue.send([message(1), again]) == {}
    other = message(3, destination_lfn=same)
    assert catalogue.send([message(1), other]).keys() == {"transfer-3"}
    assert len(rucio.replicas) == 1


def test_a_bad_name_refuses_the_call_so_that_it_is_found(rucio: StandIn, catalogue: RucioCatalogue) -> None:
    with pytest.raises(ContentRefused, match=r"rucio: add_replicas failed: InvalidObject"):
        catalogue.send([message(1), message(2, destination_lfn="/store/user/alice/a~b.root")])
    assert rucio.files == {}


def test_names_are_as_the_subscription_wants_them(
    rucio: StandIn, server: AnsweringServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rucio.rses["T2_CH_CERN_Disk"] = True
    rucio.scopes.add("alice")
    catalogue = opened(
        server,
        monkeypatch,
        tmp_path,
        rse="{site}_Disk",
        user_scope="{username}",
        dataset="/out/{task}",
        logs=True,
    )
    assert catalogue.send([message(1, file_type="log")]) == {}
    assert rucio.datasets.keys() == {("alice", "/out/261122_alice_task")}
    assert {rse for rse, _ in rucio.replicas} == {"T2_CH_CERN_Disk"}


def test_silence_is_not_the_messages_fault(
    server: AnsweringServer, catalogue: RucioCatalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "_back_off", lambda *_arguments: None)
    server.shutdown()
    server.server_close()
    with pytest.raises(Failing, match="get_rse failed: ServerConnectionException"):
        catalogue.send([message(1)])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("CannotAuthenticate", NotLetIn), ("ServiceUnavailable", Failing), ("DatabaseException", Faulty),
        ("InvalidObject", ContentRefused), ("RuleNotFound", Faulty),
    ],
)  # fmt: skip
def test_what_an_exception_of_rucio_is(name: str, kind: type[Exception]) -> None:
    assert verdict_on(getattr(rucio_exceptions, name)()).error is kind
    assert verdict_on(OSError()).error is Failing


def test_every_exception_that_we_know_is_one_of_rucio() -> None:
    assert [name for name in VERDICTS if not hasattr(rucio_exceptions, name)] == []
