"""Asks a real Rucio server everything that matters to us, and keeps its answers; see README.md.

``python record.py URL ACCOUNT USERNAME PASSWORD > recordings.json``, against a server with nothing in it but
what ``seed`` makes. The test of the stand-in plays the same questions (``recordings.json``) in the same order.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

import requests

SCOPE = "user.alice"
DATASET = "/A/B-v1/USER#11111111-1111-1111-1111-111111111111"
URL = "davs://t3-us-tape.example.org:443/cms/store/user/alice/mc/out_1.root"


class Question(NamedTuple):
    label: str
    method: str
    path: str
    body: Any = None


def lfn(number: int) -> str:
    return f"/store/user/alice/mc/out_{number}.root"


def did(number: int, scope: str = SCOPE) -> dict[str, Any]:
    return {"scope": scope, "name": lfn(number)}


def replica(number: int, scope: str = SCOPE, **changes: Any) -> dict[str, Any]:
    return did(number, scope) | {"bytes": 1000 + number, "adler32": f"{number:08x}"} | changes


def add(label: str, rse: str, *files: dict[str, Any]) -> Question:
    return Question(label, "POST", "/replicas", {"rse": rse, "files": files, "ignore_availability": True})


def datasets(label: str, *names: str, scope: str = SCOPE) -> Question:
    wanted = [{"scope": scope, "name": name, "type": "DATASET"} for name in names]
    return Question(label, "POST", "/dids", wanted)


def attach(label: str, name: str, *numbers: int) -> Question:
    attachment = {"scope": SCOPE, "name": name, "dids": [did(number) for number in numbers]}
    return Question(
        label, "POST", "/dids/attachments", {"ignore_duplicate": True, "attachments": [attachment]}
    )


def of_dataset(label: str, method: str, what: str, body: Any = None) -> Question:
    return Question(label, method, f"/dids/{SCOPE}/{quote(DATASET, safe='')}/{what}", body)


QUESTIONS = (
    Question("a deterministic RSE", "GET", "/rses/T2_CH_CERN"),
    Question("an RSE that is not", "GET", "/rses/T3_US_Tape"),
    Question("no such RSE", "GET", "/rses/T2_XX_No"),
    add("new replicas", "T2_CH_CERN", replica(1), replica(2)),
    add("some are there", "T2_CH_CERN", replica(1), replica(2), replica(3)),
    add("other size", "T2_CH_CERN", replica(1, bytes=5)),
    add("other checksum, other RSE", "T2_IT_Bari", replica(1, adler32="ffffffff")),
    add("one scope is unknown", "T2_CH_CERN", replica(9, "user.nobody"), replica(4)),
    add("unknown RSE", "T2_XX_No", replica(1)),
    add("a PFN is needed", "T3_US_Tape", replica(1)),
    add("with its PFN", "T3_US_Tape", replica(1, pfn=URL)),
    add("a bad name", "T2_CH_CERN", replica(5), replica(6, name="/store/a b")),
    add("a bad checksum", "T2_CH_CERN", replica(7, adler32="zz")),
    add("no checksum", "T2_CH_CERN", {**did(8), "bytes": 3}),
    add("twice in one call", "T2_CH_CERN", replica(30), replica(30)),
    Question("metadata of some", "POST", "/dids/bulkmeta", {"dids": [did(1), did(8), did(99)], "inherit": False}),
    datasets("a new dataset", DATASET),
    datasets("one is there", DATASET, DATASET + "2"),
    datasets("a dataset in an unknown scope", DATASET, scope="user.nobody"),
    datasets("a dataset with the name of a file", lfn(1)),
    attach("a file", DATASET, 1),
    attach("one is in it", DATASET, 1, 2),
    attach("an unknown file", DATASET, 99),
    attach("an unknown dataset", DATASET + "x", 1),
    of_dataset("close it", "PUT", "status", {"open": False}),
    of_dataset("close it again", "PUT", "status", {"open": False}),
    attach("another file to a closed dataset", DATASET, 3),
    attach("what is in a closed dataset", DATASET, 1),
    of_dataset("its content", "GET", "dids"),
)  # fmt: skip


def seed(ask: Any) -> None:
    """Make accounts, scopes and RSEs."""
    ask("POST", "/accounts/alice", {"type": "USER", "email": "alice@example.org"})
    ask("POST", "/accounts/alice/scopes/user.alice")
    for rse, deterministic in (("T2_CH_CERN", True), ("T2_IT_Bari", True), ("T3_US_Tape", False)):
        ask("POST", f"/rses/{rse}", {"deterministic": deterministic})
        ask("POST", f"/rses/{rse}/attr/lfn2pfn_algorithm", {"value": "identity"})
        host = f"{rse.lower().replace('_', '-')}.example.org"
        ways = dict.fromkeys(
            ("read", "write", "delete", "third_party_copy_read", "third_party_copy_write"), 1
        )
        ask(
            "POST",
            f"/rses/{rse}/protocols/davs",
            {"scheme": "davs", "hostname": host, "port": 443, "prefix": "/cms", "domains": {"wan": ways},
             "impl": "rucio.rse.protocols.gfal.Default"},
        )  # fmt: skip


def recorded(url: str, account: str, username: str, password: str) -> Iterator[dict[str, Any]]:
    who = {"X-Rucio-Account": account, "X-Rucio-Username": username, "X-Rucio-Password": password}
    token = requests.get(f"{url}/auth/userpass", headers=who, timeout=60).headers["X-Rucio-Auth-Token"]
    headers = {"X-Rucio-Auth-Token": token, "X-Rucio-Account": account}

    def ask(method: str, path: str, body: Any = None) -> requests.Response:
        return requests.request(method, url + path, json=body, headers=headers, timeout=60)

    seed(ask)
    for question in QUESTIONS:
        answer = ask(question.method, question.path, question.body)
        yield {
            "label": question.label,
            "status": answer.status_code,
            "exception": answer.headers.get("ExceptionClass"),
            "type": answer.headers.get("Content-Type"),
            "body": answer.text,
        }


if __name__ == "__main__":
    json.dump(list(recorded(*sys.argv[1:])), sys.stdout, indent=1)
    sys.stdout.write("\n")
