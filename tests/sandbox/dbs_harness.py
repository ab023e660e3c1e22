"""A sandbox DBS inside the test's process, with a clock that only moves when told, and blocks to publish."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import requests

from asyncstageout.clients.dbs import DBSClient
from asyncstageout.clients.http import Access, Patience, new_session
from asyncstageout.core.dbs import BlockContent, BlockFile, Lumi, OutputConfig, block_body, block_name
from asyncstageout.sandbox.dbs.service import Options, SandboxDBS
from asyncstageout.sandbox.faults import FaultPlan
from asyncstageout.sandbox.serving import running, server
from asyncstageout.sandbox.tls import SandboxTLS
from sandbox.harness import Clock, caller

DATASET = "/QCD_Pt-15to20/rossi-skim-00112233445566778899aabbccddeeff/USER"
PARENTS = "/QCD_Pt-15to20/Run2026-v1/AODSIM"
CONFIG = OutputConfig("CMSSW_14_0_1", "00112233445566778899aabbccddeeff")
TRIES = Patience(tries=3, connect_s=5, read_s=10, deadline_s=20)


def lfn(number: int = 0) -> str:
    return f"/store/user/rossi/QCD_Pt-15to20/skim/261122_120000/0000/out_{number}.root"


def a_file(number: int = 0, **changes: Any) -> BlockFile:
    lumis = (Lumi(1, 2 * number + 1, 60), Lumi(1, 2 * number + 2, 40))
    file = BlockFile(lfn(number), 1000 + number, f"{number:x}", 100, CONFIG, lumis, cksum="1504266448")
    return replace(file, **changes)


def a_block(number: int = 0, *files: BlockFile, dataset: str = DATASET, **changes: Any) -> BlockContent:
    """Return a block; without ``files`` it has two of its own."""
    own = files or (a_file(2 * number), a_file(2 * number + 1))
    return replace(BlockContent(block_name(dataset, UUID(int=number)), "T2_IT_Bari", own), **changes)


def body_of(number: int = 0, *files: BlockFile, **changes: Any) -> dict[str, Any]:
    return block_body(a_block(number, *files, **changes))


@dataclass
class DBSBench:
    """One served DBS with two instances, and somebody who may use it."""

    dbs: SandboxDBS
    clock: Clock
    url: str
    access: Access
    session: requests.Session

    @property
    def global_reader(self) -> str:
        return f"{self.url}/dbs/prod/global/DBSReader"

    def client(self, instance: str = "phys03", patience: Patience = TRIES) -> DBSClient:
        """Return a client; close it."""
        writer = f"{self.url}/dbs/prod/{instance}/DBSWriter"
        return DBSClient(writer, new_session(self.access), patience=patience, sleep=lambda _s: None)

    def fault(self, **plan: Any) -> None:
        self.dbs.faults.replace(FaultPlan.model_validate(plan))

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """Ask below ``/dbs/prod``, with nothing that requests would add."""
        headers = {"Accept-Encoding": "identity", **options.pop("headers", {})}
        url = f"{self.url}/dbs/prod/{path}"
        return self.session.request(method, url, headers=headers, timeout=20, **options)

    def counts(self, instance: str = "phys03") -> dict[str, int]:
        answer = self.session.get(f"{self.url}/sandbox/stats", timeout=20).json()
        counted: dict[str, int] = answer[f"prod/{instance}"]
        return counted

    def put(self, instance: str, body: dict[str, Any]) -> None:
        """Insert a block that must be taken."""
        headers = {"Content-Type": "application/json"}
        answer = self.ask("POST", f"{instance}/DBSWriter/bulkblocks", data=json.dumps(body), headers=headers)
        assert (answer.status_code, answer.text) == (200, "[]"), answer.text


@contextmanager
def dbs_bench(tls: SandboxTLS, state: Path, clock: Clock | None = None, **options: Any) -> Iterator[DBSBench]:
    clock = clock or Clock()
    dbs = SandboxDBS(Options(state=state, **{"migration_step_s": 10, **options}), clock)
    access = Access(ca=str(tls.ca), cert_file=str(tls.client.cert), key_file=str(tls.client.key))
    with (
        running(server(dbs.app, tls=tls.server, client_ca=tls.ca)) as port,
        caller(tls, tls.client) as session,
    ):
        yield DBSBench(dbs, clock, f"https://127.0.0.1:{port}", access, session)
