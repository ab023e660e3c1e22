"""The sandbox's FTS against a real one's answers to callers with tokens.

The recorded tokens have lost their signatures: an issuer of the test's own, in the place of the recorded one,
signs the same claims again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from asyncstageout.clients.credentials.oidc_tokens import unverified_claims
from asyncstageout.clients.http import Access, new_session
from asyncstageout.sandbox.fts.service import Options, SandboxFTS
from asyncstageout.sandbox.serving import running, server
from asyncstageout.sandbox.tls import SandboxTLS
from clients.answering import AnsweringServer, Asked, Reply, answering
from contract.test_sandbox_fts import ALL, FILES, Recording, check, normal
from sandbox.harness import Bench, Clock, SiteBench, certificates, site_bench

ISSUER = "https://localhost:8450/"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
TOKEN = re.compile(r"eyJ[\w.\-]+")


def issuer(asked: Asked) -> Reply:
    if asked.path == "/.well-known/openid-configuration":
        return Reply(body=json.dumps({"issuer": ISSUER, "jwks_uri": f"{ISSUER}jwks"}).encode())
    public = jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key(), as_dict=True)
    return Reply(body=json.dumps({"keys": [{**public, "kid": "k1", "alg": "RS256"}]}).encode())


def signed_again(text: str) -> str:
    claims = unverified_claims(text)
    return jwt.encode(claims, KEY, "RS256", headers={"kid": "k1"})


def times(recording: Recording) -> list[int]:
    """When the recorded tokens were issued."""
    text = json.dumps([recording.headers, recording.body])
    return [int(unverified_claims(found)["iat"]) for found in TOKEN.findall(text)]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> SandboxTLS:
    return certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def issuing(tls: SandboxTLS) -> Iterator[AnsweringServer]:
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.server.cert, tls.server.key)
    with answering(issuer, context) as served:
        yield served


@pytest.fixture(scope="module")
def sites(tls: SandboxTLS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteBench]:
    with site_bench(tls, tmp_path_factory.mktemp("sites"), "T2_XX_SE1", "T2_XX_SE2") as served:
        for name in ("g1", "g2", "g3"):
            served.put("T2_XX_SE1", f"data/{name}.bin", FILES["data/g1.bin"])
        yield served


@pytest.fixture
def at(tls: SandboxTLS, issuing: AnsweringServer, sites: SiteBench, tmp_path: Path) -> Iterator[Bench]:
    options = Options(
        state=tmp_path,
        gridmap={"alice-sub": "testvo"},
        connect_to=sites.address,
        ca=str(tls.ca),
        token_issuers=(ISSUER,),
        token_connect_to={"localhost": issuing.address},
    )
    clock = Clock()
    fts = SandboxFTS(options, clock)
    app = server(fts.app, tls=tls.server, client_ca=tls.ca)
    with running(app) as port, new_session(Access(ca=str(tls.ca))) as nobody:
        yield Bench(fts, clock, f"https://127.0.0.1:{port}", {None: nobody})


def ask(at: Bench, recording: Recording, **changes: Any) -> Any:
    def again(value: Any) -> Any:
        return json.loads(TOKEN.sub(lambda found: signed_again(found[0]), json.dumps(value)))

    at.clock.now_s = max(times(recording)) + 1
    path = changes.get("path", recording.path)
    return at.ask(None, recording.method, path, again(recording.body), headers=again(recording.headers))


@pytest.mark.parametrize(
    "number", [142, 143, 144, 145, 148, 149, 150, 152, 153, 155, 156, 160], ids=lambda n: ALL[n].name
)
def test_answers_as_recorded(at: Bench, number: int) -> None:
    check(ALL[number], ask(at, ALL[number]))


def test_151_a_file_waits_for_its_tokens_and_is_copied(at: Bench, sites: SiteBench) -> None:
    job_id = ask(at, ALL[150]).json()["job_id"]
    recording = ALL[151]
    path = recording.path.replace(recording.response["job_id"], job_id)
    at.tick()
    assert at.fts.call(lambda: at.fts.engine.jobs[job_id].files[0].file_state) == "TOKEN_PREP"
    at.finish(job_id)
    answer = ask(at, recording, path=path)
    wanted = {**recording.response, "files": [dict(recording.response["files"][0])]}
    assert normal(answer.json()) == normal(wanted)


def test_unmanaged_tokens_need_no_preparation(at: Bench) -> None:
    recording = ALL[152]
    recording = _with_body(recording, {**recording.body, "params": {"unmanaged_tokens": True}})
    at.hold()
    job_id = ask(at, recording).json()["job_id"]
    assert at.fts.call(lambda: at.fts.engine.jobs[job_id].files[0].file_state) == "SUBMITTED"


def _with_body(recording: Recording, body: Any) -> Recording:
    other = object.__new__(Recording)
    other.__dict__ |= recording.__dict__ | {"body": body}
    return other


def test_file_tokens_are_checked(at: Bench) -> None:
    file = ALL[150].body["files"][0]
    claims = unverified_claims(file["source_tokens"][0])
    cases = {
        "Token does not contain a aud claim": {k: v for k, v in claims.items() if k != "aud"},
        "Token has an unknown issuer: issuer=https://evil/": claims | {"iss": "https://evil/"},
        "Failed to validate access-token": claims | {"exp": claims["iat"] - 60},
    }
    for text, wrong in cases.items():
        token = jwt.encode(wrong, KEY, "RS256", headers={"kid": "k1"})
        body = {"files": [{**file, "source_tokens": [token]}], "params": {}}
        answer = ask(at, _with_body(ALL[150], body))
        assert (answer.status_code, answer.json()["message"]) == (400, text)


def test_a_badly_signed_token_is_nobody(at: Bench) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    token = jwt.encode(unverified_claims(_bearer(142)), other, "RS256", headers={"kid": "k1"})
    at.clock.now_s = times(ALL[142])[0] + 1
    answer = at.ask(None, "GET", "/whoami", headers={"Authorization": f"Bearer {token}"})
    assert answer.json()["method"] == "unauthenticated"


def _bearer(number: int) -> str:
    token: str = ALL[number].headers["Authorization"].removeprefix("Bearer ")
    return token
