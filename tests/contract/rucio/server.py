"""A Rucio server as far as we ask one, held to the answers of a real one by test_rucio.py."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from clients.answering import AnsweringServer, Asked, Reply, answering

NAME = re.compile(r"[/A-Za-z0-9][/A-Za-z0-9.\-_#]*\Z")
ADLER32 = re.compile(r"[0-9a-fA-F]{8}\Z")
STREAM = "application/x-json-stream"
DID = tuple[str, str]


class Wrong(Exception):
    """An answer that is an exception of Rucio."""

    def __init__(self, status: int, name: str, message: str = "") -> None:
        super().__init__(message)
        self.status, self.name = status, name


@dataclass
class StandIn:
    """Files, datasets and replicas, as the questions of record.py find them."""

    scopes: set[str] = field(default_factory=lambda: {"user.alice"})
    rses: dict[str, bool] = field(
        default_factory=lambda: {"T2_CH_CERN": True, "T2_IT_Bari": True, "T3_US_Tape": False}
    )
    """RSE -> whether it is deterministic."""
    files: dict[DID, dict[str, Any]] = field(default_factory=dict)
    replicas: set[tuple[str, DID]] = field(default_factory=set)
    datasets: dict[DID, set[DID]] = field(default_factory=dict)
    closed: set[DID] = field(default_factory=set)
    password: str = "secret"
    calls: list[str] = field(default_factory=list)

    def respond(self, asked: Asked) -> Reply:
        path = unquote(asked.path.partition("?")[0])
        if path == "/auth/userpass":
            return self._token(asked)
        self.calls.append(f"{asked.method} {path}")
        try:
            return self._answer(asked.method, path, json.loads(asked.body) if asked.body else None)
        except Wrong as error:
            body = json.dumps({"ExceptionClass": error.name, "ExceptionMessage": str(error)}).encode()
            headers = {"ExceptionClass": error.name, "Content-Type": "application/octet-stream"}
            return Reply(error.status, body, headers)

    def _token(self, asked: Asked) -> Reply:
        if asked.headers.get("x-rucio-password") != self.password:
            return Reply(401, b"{}", {"ExceptionClass": "CannotAuthenticate", "ExceptionMessage": "no"})
        expires = "Fri, 27 Nov 2099 00:00:00 UTC"
        return Reply(headers={"X-Rucio-Auth-Token": "a-token", "X-Rucio-Auth-Token-Expires": expires})

    def _answer(self, method: str, path: str, body: Any) -> Reply:
        routes: dict[tuple[str, str], Callable[..., Reply]] = {
            ("GET", r"/rses/(?P<rse>\w+)"): self.rse,
            ("POST", r"/replicas/?"): self.add_replicas,
            ("POST", r"/dids/bulkmeta/?"): self.metadata,
            ("POST", r"/dids/?"): self.add_datasets,
            ("POST", r"/dids/attachments/?"): self.attach,
            ("PUT", r"/dids/(?P<scope>[^/]+)/(?P<name>.+)/status"): self.status,
            ("GET", r"/dids/(?P<scope>[^/]+)/(?P<name>.+)/dids"): self.content,
        }
        for (verb, pattern), answer in routes.items():
            if verb == method and (found := re.fullmatch(pattern, path)):
                return answer(**found.groupdict(), **({} if body is None else {"body": body}))
        raise AssertionError(f"nobody asks a Rucio server {method} {path}")

    def rse(self, rse: str) -> Reply:
        facts = {"rse": rse, "deterministic": self._rse(rse), "volatile": False}
        return Reply(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})

    def add_replicas(self, body: dict[str, Any]) -> Reply:
        deterministic = self._rse(body["rse"])
        for file in body["files"]:
            if not NAME.match(file["name"]) or not ADLER32.match(file.get("adler32", "0" * 8)):
                raise Wrong(500, "InvalidObject", "Problem validating dids")
        if not deterministic and any("pfn" not in file for file in body["files"]):
            raise Wrong(500, "UnsupportedOperation", "PFN needed for this (non deterministic) RSE")
        dids = [_did(file) for file in body["files"]]
        self._known(404, dids)
        if len(set(dids)) < len(dids):
            raise Wrong(500, "DatabaseException", "An unknown Database Exception has occurred.")
        for did, file in zip(dids, body["files"], strict=True):
            # What it knows already stays as it is.
            self.files.setdefault(did, {"bytes": file["bytes"], "adler32": file.get("adler32")})
            self.replicas.add((body["rse"], did))
        return Reply(201, b"Created")

    def metadata(self, body: dict[str, Any]) -> Reply:
        return _stream(self._row(_did(one)) for one in body["dids"] if _did(one) in self.files)

    def add_datasets(self, body: list[dict[str, Any]]) -> Reply:
        dids = [_did(one) for one in body]
        self._known(500, dids)
        if any(did in self.datasets or did in self.files for did in dids):
            raise Wrong(409, "DataIdentifierAlreadyExists", "Data Identifier already exists!")
        self.datasets |= {did: set() for did in dids}
        return Reply(201, b"Created")

    def attach(self, body: dict[str, Any]) -> Reply:
        assert body["ignore_duplicate"]
        for attachment in body["attachments"]:
            did, inside = _did(attachment), [_did(one) for one in attachment["dids"]]
            for one in [did, *inside]:
                if one not in self.datasets and one not in self.files:
                    raise Wrong(
                        404, "DataIdentifierNotFound", f"Data identifier '{one[0]}:{one[1]}' not found"
                    )
            if did in self.closed:
                raise Wrong(409, "UnsupportedOperation", f"Data identifier '{did[0]}:{did[1]}' is closed")
            self.datasets[did] |= set(inside)
        return Reply(201, b"Created")

    def status(self, scope: str, name: str, body: dict[str, Any]) -> Reply:
        if (scope, name) in self.closed:
            raise Wrong(409, "UnsupportedOperation", "The status cannot be changed")
        assert body == {"open": False}
        self.closed.add((scope, name))
        return Reply(200)

    def content(self, scope: str, name: str) -> Reply:
        if (scope, name) not in self.datasets:
            raise Wrong(404, "DataIdentifierNotFound", f"Data identifier '{scope}:{name}' not found")
        return _stream(self._row(did) for did in sorted(self.datasets[scope, name]))

    def _rse(self, rse: str) -> bool:
        if rse not in self.rses:
            raise Wrong(404, "RSENotFound", f"RSE '{rse}' cannot be found in vo 'def'")
        return self.rses[rse]

    def _known(self, status: int, dids: list[DID]) -> None:
        if any(scope not in self.scopes for scope, _ in dids):
            raise Wrong(status, "ScopeNotFound", "Scope not found!")

    def _row(self, did: DID) -> dict[str, Any]:
        return {"scope": did[0], "name": did[1], **self.files[did]}


def _did(one: dict[str, Any]) -> DID:
    return one["scope"], one["name"]


def _stream(rows: Iterator[dict[str, Any]]) -> Reply:
    return Reply(200, "".join(json.dumps(row) + "\n" for row in rows).encode(), {"Content-Type": STREAM})


@contextmanager
def serving(stand_in: StandIn) -> Iterator[AnsweringServer]:
    with answering(stand_in.respond) as server:
        yield server
