"""The FTS client against every recorded answer to a request that it can make.

One row per recording: what the client is asked, and what it must make of the answer. A recording that is
neither here nor in ``NOT_ASKED`` fails the suite, so a new one cannot be forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from asyncstageout.clients.errors import (
    BadAnswer,
    DelegationNeeded,
    DestinationBusy,
    FTSError,
    NotAuthorised,
    Refused,
    RequestTooLong,
    ServerFault,
    SidDuplicated,
    StorageBanned,
    SubmissionRefused,
    TooManyIds,
    Unavailable,
)
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.clients.http import Patience, new_session
from asyncstageout.core.fts import (
    FTSJobStatus,
    Identity,
    JobForbidden,
    JobMissing,
    JobSubmission,
    ServerVersion,
    TransferFile,
    destination_hash,
)
from clients.answering import Asked, Reply, answering

RECORDINGS = Path(__file__).parent / "recordings"
NOBODY = UUID(int=0)
ONE_TRY = Patience(tries=1)
SUBMISSION = JobSubmission("sid-d7a614", (TransferFile(1, 1, "mock://a.local/x", "mock://b.local/y", 5),))
SUBMITTED_ID = UUID("58633607-61c7-5462-8356-3a038d07d30e")
FAILED_REASON = "One or more files failed. Please have a look at the details for more information"


@dataclass(frozen=True)
class Recording:
    name: str
    method: str
    path: str
    status: int
    headers: dict[str, str]
    response: Any

    @property
    def ids(self) -> list[UUID]:
        ids = self.path.split("/")[2]
        # Two recordings hold "<150 ids comma separated>" in the place of the ids.
        return [UUID(int=n) for n in range(100)] if "<" in ids else [UUID(part) for part in ids.split(",")]

    @property
    def reply(self) -> Reply:
        kind = self.headers.get("Content-Type", "text/html" if isinstance(self.response, str) else "")
        text = self.response if kind.startswith("text/") else json.dumps(self.response)
        return Reply(self.status, text.encode(), {"Content-Type": kind})


def read(path: Path) -> Recording:
    row = json.loads(path.read_text())
    asked = row["request"]
    return Recording(
        path.stem,
        asked["method"],
        asked["path"].partition("?")[0],
        row["status"],
        row.get("headers", {}),
        row["response"],
    )


ALL = {recording.name[:3]: recording for recording in map(read, sorted(RECORDINGS.glob("*.json")))}


@dataclass(frozen=True)
class Job:
    """What is expected of a job: state and reason, and of each file state and beginning of the reason."""

    state: str
    files: tuple[str, ...] = ()
    reason: str = ""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FTSJobStatus):
            return NotImplemented
        found = tuple(f"{file.state} {file.reason}".strip() for file in other.files)
        same_files = len(found) == len(self.files) and all(map(str.startswith, found, self.files))
        return (other.state, other.reason or "") == (self.state, self.reason) and same_files

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Error:
    """What is expected of an error: its class exactly, some of its text, and its own keys."""

    kind: type[FTSError]
    text: str = ""
    keys: tuple[tuple[str, object], ...] = ()


def error(kind: type[FTSError], text: str = "", **keys: object) -> Error:
    return Error(kind, text, tuple(keys.items()))


def failed(reason: str) -> list[Job]:
    return [Job("FAILED", (f"FAILED {reason}",), FAILED_REASON)]


def random_id(number: str) -> Error:
    """These jobs were not submitted with a deterministic id, so the client must not take the answer."""
    return error(BadAnswer, f"the job got id {ALL[number].response['job_id']}")


ALICE = Identity("/DC=test/DC=fts/CN=alice", ("testvo",), "09a4d1c5b96b1aa8", "certificate")
ANON = Identity("anon", (), None, "unauthenticated")
VERSION = ServerVersion(api="3.13.4", schema="9.1.0", core=None)
CANCELED = "Job canceled by the user"
BUSY = destination_hash("mock://b.local/9908d8/dst1?size_post=1000&time=20")
UNKNOWN_JOB = [JobMissing(NOBODY)]


def forbidden(number: str) -> list[JobForbidden]:
    job_id = ALL[number].ids[0]
    return [JobForbidden(job_id, f'Not enough permissions to check the job "{job_id}"')]


SUBMISSIONS = {
    "007": error(NotAuthorised, "Not enough permissions"),
    "010": error(DelegationNeeded, "No delegation found"),
    "018": SUBMITTED_ID,
    "019": error(SidDuplicated, sid="sid-d7a614", job_id=SUBMITTED_ID),
    "020": error(SubmissionRefused, "Need sid"),
    "023": error(SubmissionRefused, "Badly formatted JSON request"),
    "024": error(SubmissionRefused, "Badly formatted JSON request"),
    "025": error(SubmissionRefused, "No transfers operations specified"),
    "026": error(SubmissionRefused, "No valid pairs available"),
    "027": error(SubmissionRefused, "No valid pairs available"),
    "028": error(SubmissionRefused, "Missing parameter: 'destinations'"),
    "030": error(SubmissionRefused, "Missing scheme (m)"),
    "031": error(SubmissionRefused, "Missing scheme (/etc/passwd)"),
    "032": error(SubmissionRefused, "Can not transfer local files"),
    "033": error(SubmissionRefused, "Missing path"),
    "034": error(SubmissionRefused, "Missing host"),
    "036": error(ServerFault, "internal error"),
    "037": error(SubmissionRefused, "invalid literal for int()"),
    "040": error(SubmissionRefused, "metadata exceeds size limit of 2048"),
    "042": error(SubmissionRefused, "Metadata neither JSON nor String"),
    "043": error(SubmissionRefused, "Incompatible overwrite flags"),
    "044": error(SubmissionRefused, "'overwrite-hop' requires multihop"),
    "045": error(SubmissionRefused, "Reuse jobs must only contain"),
    "047": error(SubmissionRefused, "Multiple replica jobs"),
    "052": error(SubmissionRefused, "Deletion jobs are no longer supported"),
    "117": error(SubmissionRefused, "Malformed request"),
    "119": error(DestinationBusy, destination_hash=BUSY),
    "120": error(DestinationBusy),
    "121": error(DestinationBusy, destination_hash=BUSY),
    "125": error(StorageBanned, storage="mock://banned.local"),
    "129": error(DelegationNeeded, "less than one hour left"),
    "135": error(Unavailable, "Internal Server Error"),
    "148": error(SubmissionRefused, "Both source_tokens and destination_tokens"),
    "149": error(SubmissionRefused, "from tape using token"),
    "155": error(NotAuthorised, "Not enough permissions"),
    "160": error(ServerFault, "internal error"),
} | {
    number: random_id(number)
    for number in (
        *("015", "017", "021", "038", "039", "046", "049", "050", "051", "108", "118"),
        *("123", "132", "140", "150", "152", "153", "157", "161"),
    )
}

STATUSES: dict[str, object] = {
    "056": [Job("ACTIVE", ("ACTIVE",) * 3)],
    "057": UNKNOWN_JOB,
    "059": [Job("SUBMITTED"), Job("SUBMITTED")],
    "060": [Job("SUBMITTED", ("SUBMITTED",)), Job("ACTIVE", ("FINISHED",) * 3)],
    "061": [Job("SUBMITTED"), JobMissing(NOBODY)],
    "062": forbidden("062"),
    "063": error(ServerFault, "internal error"),
    "072": [Job("CANCELED", (f"CANCELED {CANCELED}",) * 2, CANCELED)],
    "077": [Job("CANCELED", (f"CANCELED {CANCELED}",) * 2, CANCELED)],
    "084": [Job("CANCELED", ("CANCELED", "FINISHED", "CANCELED"), FAILED_REASON)],
    "088": [Job("FINISHEDDIRTY", ("FINISHED", "FAILED SOURCE [2] No such file"), FAILED_REASON)],
    "089": failed("TRANSFER [110] Connection timed out"),
    "091": [Job("FINISHED", ("FAILED SOURCE [2] No such file", "FINISHED"))],
    "093": [Job("FINISHED", ("FINISHED",) * 2)],
    "094": [Job("FINISHED", ("FINISHED",) * 3)],
    "095": failed("SOURCE [93] Protocol not supported"),
    "097": [Job("FINISHED", ("FINISHED",))],
    "098": failed("DESTINATION [17] Destination file exists and overwrite is not enabled"),
    "099": [Job("FINISHED", ("FINISHED",))],
    "100": failed("TRANSFER [5] SOURCE CHECKSUM MISMATCH"),
    "102": failed("SOURCE [112] Result Could not connect"),
    "103": [Job("FINISHED", ("FINISHED",))],
    "104": failed("DESTINATION [17] Destination file exists and overwrite is not enabled"),
    "105": [Job("FINISHED", ("FINISHED",))],
    "115": error(TooManyIds, "Not Found"),
    "116": error(RequestTooLong, "Request-URI Too Long"),
    "133": [Job("ACTIVE", ("ACTIVE",))],
    "134": error(Unavailable, "Internal Server Error"),
    "138": [Job("ACTIVE")],
    "141": [Job("FINISHED", ("FINISHED",))],
    "151": [Job("FINISHED", ("FINISHED",))],
    "158": [Job("FINISHED", ("FINISHED",))],
    "159": failed("No FTS server has updated the transfer status the last 900 seconds"),
    "162": failed("SOURCE [2] No such file or directory"),
    "163": failed("SOURCE [5] Input/output error"),
    "164": failed("TRANSFER [5] Input/output error"),
    "165": failed("TRANSFER [13] Permission denied"),
    "166": failed("TRANSFER [28] No space left on device"),
    "167": failed("DESTINATION [22] Source and destination file size mismatch"),
    "168": failed("DESTINATION [17] Destination file exists"),
    "169": failed("SOURCE [2] Result HTTP 404"),
    "170": failed("SOURCE [112] Result Could not connect"),
    "171": failed("TRANSFER [5] SOURCE CHECKSUM MISMATCH"),
}

CANCELS: dict[str, object] = {
    "071": [Job("CANCELED", reason=CANCELED)],
    "073": [Job("CANCELED", reason=CANCELED)],
    "074": UNKNOWN_JOB,
    "076": forbidden("076"),
    "085": [Job("FINISHED")],
}

PRIORITIES: dict[str, object] = {
    "082": [Job("SUBMITTED", ("CANCELED", "SUBMITTED", "CANCELED"))],
    "083": UNKNOWN_JOB,
    "086": [Job("FINISHED")],
}

LISTS: dict[str, object] = {
    "067": [Job("SUBMITTED"), Job("ACTIVE")],
    "068": error(Refused, "The limit must be positive"),
    "069": [Job("FINISHED"), Job("FINISHED")],
    "156": error(NotAuthorised, "Not enough permissions"),
}

IDENTITIES: dict[str, object] = {
    "003": ANON,
    "004": ALICE,
    "005": ALICE,
    "006": Identity(
        "/DC=test/DC=fts/CN=localhost", ("baef18d8986c7c5e",), "baef18d8986c7c5e", "certificate", is_root=True
    ),
    "136": error(Unavailable),
    "142": Identity("alice-sub", ("testvo",), "f8e255d20926b4ab", "oauth2"),
    "143": ANON,
    "144": ANON,
    "145": ANON,
    "146": ANON,
}

VERSIONS: dict[str, object] = {"001": VERSION, "002": VERSION, "137": error(Unavailable)}

Call = Callable[[FTS3Client, Recording], object]
TABLES: list[tuple[Call, dict[str, object]]] = [
    (lambda client, _: client.version(), VERSIONS),
    (lambda client, _: client.whoami(), IDENTITIES),
    (lambda client, _: client.submit(SUBMISSION), SUBMISSIONS),
    (lambda client, asked: client.statuses(asked.ids), STATUSES),
    (lambda client, asked: client.cancel_jobs(asked.ids), CANCELS),
    (lambda client, asked: client.set_priority(asked.ids, 5), PRIORITIES),
    (lambda client, _: client.list_jobs(limit=2), LISTS),
    (
        lambda client, asked: [file.state for file in client.files(asked.ids[0])],
        {"078": ["SUBMITTED"] * 3},
    ),
    (
        lambda client, asked: client.cancel_files(asked.ids[0], _file_ids(asked)),
        {
            "079": {8872390227: "CANCELED"},
            "081": {8872390227: "CANCELED", 8872390229: "CANCELED"},
        },
    ),
    (
        lambda client, asked: [
            (retry.attempt, retry.reason, retry.tried_at)
            for retry in client.retries(asked.ids[0], _file_ids(asked)[0])
        ],
        {
            "090": [
                (n, "TRANSFER [110] Connection timed out", datetime(2026, 11, 22, 8, 37, second, tzinfo=UTC))
                for n, second in ((1, 22), (2, 26))
            ]
        },
    ),
]

NOT_ASKED = {
    "delegation": ("008", "011", "012", "013", "014", "131"),
    "a route that does not exist": ("054", "055"),
    "one field of a job": ("065", "066"),
    "bans and configuration, which are for the administrators of FTS": (
        *("106", "107", "109", "111", "124", "126", "127", "128"),
    ),
    "stat by FTS, its optimizer and its schema": ("112", "113", "114"),
}

ROWS = [
    pytest.param(call, ALL[number], expected, id=ALL[number].name)
    for call, table in TABLES
    for number, expected in table.items()
]


def _file_ids(asked: Recording) -> list[int]:
    return [int(part) for part in asked.path.split("/")[4].split(",")]


class Replay:
    """Answers with one recording, to the request that it is the answer to."""

    recording: Recording

    def __call__(self, asked: Asked) -> Reply:
        recording = self.recording
        path = asked.path.partition("?")[0]
        if asked.method != recording.method or ("<" not in recording.path and path != recording.path):
            return Reply(599, f"asked {asked.method} {path}, recorded {recording.method}".encode())
        return recording.reply


@pytest.fixture(scope="module")
def replay() -> Replay:
    return Replay()


@pytest.fixture(scope="module")
def client(replay: Replay) -> Iterator[FTS3Client]:
    with (
        answering(replay) as server,
        FTS3Client(server.url, new_session(), vo="testvo", patience=ONE_TRY) as client,
    ):
        yield client


@pytest.mark.parametrize(("call", "recording", "expected"), ROWS)
def test_answer(
    client: FTS3Client, replay: Replay, call: Call, recording: Recording, expected: object
) -> None:
    replay.recording = recording
    if isinstance(expected, Error):
        with pytest.raises(expected.kind) as caught:
            call(client, recording)
        assert type(caught.value) is expected.kind
        assert expected.text in str(caught.value)
        assert {name: getattr(caught.value, name) for name, _ in expected.keys} == dict(expected.keys)
        assert recording.status in (caught.value.status, 200)
    else:
        assert call(client, recording) == expected


def test_every_recording_is_asked_or_left_out_on_purpose() -> None:
    asked = [number for _, table in TABLES for number in table]
    left_out = [number for numbers in NOT_ASKED.values() for number in numbers]
    assert sorted(asked + left_out) == sorted(ALL)


def test_a_status_keeps_what_fts_says(client: FTS3Client, replay: Replay) -> None:
    replay.recording = ALL["088"]
    job = client.job_status(ALL["088"].ids[0])
    assert isinstance(job, FTSJobStatus)
    assert (job.submitted_at, job.finished_at) == (
        datetime(2026, 11, 22, 8, 37, 17, tzinfo=UTC),
        datetime(2026, 11, 22, 8, 37, 20, tzinfo=UTC),
    )
    first = job.files[0]
    assert {field.name: getattr(first, field.name) for field in fields(first)} == {
        "file_id": 8872390230,
        "state": "FINISHED",
        "reason": "",
        "recoverable": None,
        "transfer_id": None,
        "attempt": None,
        "source_url": "mock://a.local/d7a614/ok?size=5",
        "dest_url": "mock://b.local/d7a614/ok?size_post=5&time=1",
        "started_at": datetime(2026, 11, 22, 8, 37, 19, tzinfo=UTC),
        "finished_at": datetime(2026, 11, 22, 8, 37, 20, tzinfo=UTC),
        "size_bytes": 5,
        "throughput_mib_s": 4.76361e-06,
        "retries": 0,
        "host": "fts01.local",
        "log_file": "/var/log/fts3/transfers/2026-11-22/a.local__b.local/"
        "2026-11-22-0837__a.local__b.local__8872390230__ecbbbe1a-e64f-11f1-8173-02fc00000001",
        "dst_size_bytes": None,
        "dst_adler32": None,
    }


def test_recoverable_comes_with_every_column(client: FTS3Client, replay: Replay) -> None:
    replay.recording = ALL["090"]
    file = ALL["090"].response[0]["file"]
    replay.recording = Recording(
        "files", "GET", f"/jobs/{file['job_id']}/files", 200, ALL["090"].headers, [file]
    )
    (status,) = client.files(UUID(file["job_id"]))
    assert (status.recoverable, status.retries, status.state) == (True, 2, "FAILED")
