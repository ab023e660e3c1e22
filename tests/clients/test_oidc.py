"""Tokens by client_credentials: what is asked for, how long it is kept, and what is said when there is none."""

from __future__ import annotations

import base64
import json
import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from asyncstageout.clients.credentials.model import (
    CredentialMissing,
    CredentialProblem,
    CredentialWrong,
    FilePlaces,
    SourceSilent,
)
from asyncstageout.clients.credentials.oidc import ANY_AUDIENCE, OIDCCredentials, area_of
from asyncstageout.clients.credentials.oidc_settings import OIDCSettings
from asyncstageout.clients.credentials.oidc_tokens import (
    QUIET,
    Client,
    Issuer,
    TokenPurse,
    unverified_claims,
)
from asyncstageout.clients.http import Patience
from asyncstageout.core.identities import Identity
from asyncstageout.sandbox.tls import sandbox_tls
from clients.answering import AnsweringServer, Asked, Reply, answering
from oidc_provider.running import issuer as real_issuer

ALICE, SERVICE = Identity("alice"), Identity("service")
SECRET = "correct horse battery"
ONCE = Patience(tries=1, connect_s=2, read_s=0.3, deadline_s=2)
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
READ, WRITE = "davs://t2.example.org:8443/x", "root://t1.example.org//y"
TEMP, USER = "/store/temp/user/alice.1a2b/r", "/store/user/alice/r"


def files(number: int) -> FilePlaces:
    return FilePlaces(f"{READ}{number}", f"{WRITE}{number}", f"{TEMP}/out_{number}", f"{USER}/out_{number}")


@dataclass
class Fake:
    """An issuer on loopback that does as it is told."""

    lifetime_s: int = 3600
    now: datetime = NOON
    replies: list[Reply] = field(default_factory=list)
    """To requests for tokens, before it goes on as usual."""
    discovery: dict[str, Any] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)
    forms: list[dict[str, str]] = field(default_factory=list)
    server: AnsweringServer | None = None

    def __call__(self, asked: Asked) -> Reply:
        assert self.server
        if asked.path.endswith("openid-configuration"):
            found = {"issuer": self.server.url, "token_endpoint": f"{self.server.url}/token"}
            return reply(found | self.discovery)
        form = {name: values[0] for name, values in parse_qs(asked.body.decode()).items()}
        self.forms.append(form)
        return self.replies.pop(0) if self.replies else reply(self.answer(form))

    def answer(self, form: dict[str, str]) -> dict[str, Any]:
        issued_s = int(self.now.timestamp())
        claims = {"iss": "x", "sub": "aso", "iat": issued_s, "exp": issued_s + self.lifetime_s}
        claims |= {"scope": form["scope"], "number": len(self.forms), **self.claims}
        return {"access_token": jwt_of(claims), "expires_in": self.lifetime_s}

    def clock(self) -> datetime:
        return self.now


def reply(row: dict[str, Any], status: int = 200) -> Reply:
    return Reply(status, json.dumps(row).encode(), {"Content-Type": "application/json"})


def jwt_of(claims: dict[str, Any]) -> str:
    parts = ({"alg": "none"}, claims)
    texts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*texts, "c2ln"])


@pytest.fixture
def fake() -> Iterator[Fake]:
    made = Fake()
    with answering(made) as server:
        made.server = server
        yield made


@pytest.fixture(autouse=True)
def nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    assert "eyJ" not in caplog.text
    assert SECRET not in caplog.text


def source(fake: Fake, **options: Any) -> OIDCCredentials:
    assert fake.server
    options = {"now": fake.clock, "patience": ONCE} | options
    return OIDCCredentials(fake.server.url, "aso", SECRET, **options)


def problem(credentials: OIDCCredentials, kind: type[CredentialProblem]) -> str:
    """Return what a failure says; never a secret."""
    with pytest.raises(kind) as raised:
        credentials.credential(SERVICE)
    text = str(raised.value)
    assert SECRET not in text
    assert "eyJ" not in text
    assert raised.value.__cause__ is None
    return text


# -- what is asked for -----------------------------------------------------------------------------


def test_a_bearer_for_fts(fake: Fake) -> None:
    credential = source(fake).credential(ALICE)
    assert fake.forms == [{"grant_type": "client_credentials", "scope": "fts", "audience": ANY_AUDIENCE}]
    assert (credential.kind, credential.subject) == ("token", "aso")
    assert credential.expires_at == NOON + timedelta(hours=1)
    assert credential.bearer
    assert unverified_claims(credential.bearer())["scope"] == "fts"
    assert "eyJ" not in repr(credential)


def test_the_secret_goes_in_a_header_where_it_can(fake: Fake) -> None:
    source(fake).credential(SERVICE)
    assert fake.server
    said = fake.server.asked[-1].headers["authorization"].removeprefix("Basic ")
    assert base64.b64decode(said) == b"aso:correct+horse+battery"  # RFC 6749, 2.3.1: form-encoded first


def test_the_secret_goes_in_the_form_where_it_must(fake: Fake) -> None:
    fake.discovery = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    source(fake, audience_parameter="resource").credential(SERVICE)
    assert fake.forms[0] == {
        "grant_type": "client_credentials",
        "scope": "fts",
        "resource": ANY_AUDIENCE,
        "client_id": "aso",
        "client_secret": SECRET,
    }


def test_storage_tokens_name_action_area_and_storage(fake: Fake) -> None:
    source(fake).tokens(ALICE, files(1))
    asked = [(form["scope"], form["audience"]) for form in fake.forms]
    area, home = "/store/temp/user/alice.1a2b", "/store/user/alice"
    assert asked == [
        (f"storage.read:{area} offline_access", "https://t2.example.org:8443"),
        (f"storage.create:{home} storage.read:{home} offline_access", "https://t1.example.org"),
    ]


def test_storage_tokens_as_configured(fake: Fake) -> None:
    audiences = {"t1.example.org": "https://wlcg.example.org"}
    source(fake, overwrites=True, managed=False, audiences=audiences).tokens(ALICE, files(1))
    home = "/store/user/alice"
    assert fake.forms[1]["scope"] == f"storage.modify:{home} storage.read:{home}"
    assert fake.forms[1]["audience"] == "https://wlcg.example.org"


def test_a_token_for_deletions_is_for_one_area_and_goes_out_now(fake: Fake) -> None:
    credentials = source(fake, overwrites=False)
    tokens = {
        credentials.deletion_token(ALICE, f"{READ}{number}", f"{TEMP}/out_{number}") for number in range(3)
    }
    assert len(tokens) == 1
    (form,) = fake.forms
    area = "/store/temp/user/alice.1a2b"
    assert form["scope"] == f"storage.modify:{area} storage.read:{area}"
    assert form["audience"] == "https://t2.example.org:8443"
    with pytest.raises(CredentialWrong, match="another user's"):
        credentials.deletion_token(Identity("bob"), f"{READ}1", f"{TEMP}/out_1")


def test_all_files_of_a_directory_share_their_tokens(fake: Fake) -> None:
    credentials = source(fake)
    with ThreadPoolExecutor(8) as pool:
        given = set(pool.map(lambda number: credentials.tokens(ALICE, files(number)), range(2000)))
    assert len(given) == 1
    assert len(fake.forms) == 2
    assert fake.server
    assert Counter(asked.path for asked in fake.server.asked)["/.well-known/openid-configuration"] == 1


AREAS = {
    "/store/user/alice/a/b.root": "/store/user/alice",
    "/store/user/rucio/alice/b.root": "/store/user/rucio/alice",
    "/store/temp/user/alice.0f3a/b.root": "/store/temp/user/alice.0f3a",
    "/store/temp/user/alice/b.root": "/store/temp/user/alice",
    "/store/group/phys_higgs/x/b.root": "/store/group/phys_higgs/x",
    "/store/unmerged/x/y/b.root": "/store/unmerged/x/y",
}


@pytest.mark.parametrize("lfn", AREAS)
def test_areas(lfn: str) -> None:
    assert area_of(ALICE, lfn) == AREAS[lfn]


@pytest.mark.parametrize(
    "lfn",
    [
        "/store/user/bob/b.root",
        "/store/user/alice.x/b.root",
        "/store/temp/user/alicex.1a/b.root",
        "/store/user/alice",
        "/store/user/rucio/b.root",
        "/store/temp/user/b.root",
        "/store/group/b.root",
        "/store/b.root",
        "/store/user/alice/../bob/b.root",
        "/store/user/alice/a b",
        "/etc/passwd",
        "/store/user//b.root",
    ],
)
def test_no_token_reaches_other_users(lfn: str) -> None:
    with pytest.raises(CredentialWrong):
        area_of(ALICE, lfn)


def test_the_service_acts_for_all_but_in_one_area_at_a_time() -> None:
    assert area_of(SERVICE, "/store/user/bob/b.root") == "/store/user/bob"


# -- how long it is kept ---------------------------------------------------------------------------


def test_a_bearer_is_renewed_before_it_ends(fake: Fake) -> None:
    bearer = source(fake).credential(SERVICE).bearer
    assert bearer
    first = bearer()
    fake.now += timedelta(minutes=54)
    assert bearer() == first
    fake.now += timedelta(minutes=2)
    assert bearer() != first
    assert len(fake.forms) == 2


def test_what_never_lasts_so_long_is_not_asked_for_again_and_again(fake: Fake) -> None:
    fake.lifetime_s = 1200
    credentials = source(fake)
    for _ in range(5):
        credentials.renew(SERVICE, timedelta(hours=8))
    assert len(fake.forms) == 1
    fake.now += timedelta(minutes=6)
    credentials.renew(SERVICE, timedelta(hours=8))
    assert len(fake.forms) == 2


def test_an_ended_token_is_not_used(fake: Fake) -> None:
    credentials = source(fake)
    first = credentials.tokens(ALICE, files(1))
    fake.now += timedelta(hours=2)
    assert not {*credentials.tokens(ALICE, files(1))} & {*first}


def test_a_silent_issuer_costs_nothing_while_the_token_is_good(
    fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    bearer = source(fake).credential(SERVICE).bearer
    assert bearer
    first = bearer()
    fake.replies = [Reply(503)] * 9
    fake.now += timedelta(minutes=57)
    assert bearer() == first
    assert "not renewed" in caplog.text
    fake.now += timedelta(minutes=4)
    with pytest.raises(SourceSilent):
        bearer()


def test_an_issuer_in_trouble_is_left_alone_for_a_while(fake: Fake) -> None:
    credentials = source(fake)
    fake.replies = [Reply(503)]
    for _ in range(3):
        problem(credentials, SourceSilent)
        with pytest.raises(SourceSilent):
            credentials.tokens(ALICE, files(1))
    assert len(fake.forms) == 1
    fake.now += QUIET
    credentials.credential(SERVICE)


def test_a_scope_that_is_not_given_stops_no_other(fake: Fake) -> None:
    credentials = source(fake)
    fake.replies = [reply({"error": "invalid_scope"}, 400)]
    for _ in range(3):
        with pytest.raises(CredentialWrong, match="invalid_scope"):
            credentials.tokens(ALICE, files(1))
    credentials.credential(SERVICE)
    assert len(fake.forms) == 2


def test_only_so_many_are_kept(fake: Fake) -> None:
    assert fake.server
    issuer = Issuer(fake.server.url, Client("aso", lambda: SECRET), patience=ONCE, now=fake.clock)
    purse = TokenPurse(issuer, fake.clock, max_tokens=10)
    for number in range(30):
        purse.token(f"storage.read:/store/user/{number}", ANY_AUDIENCE, timedelta(0))
    assert len(purse._slots) <= 10
    fake.now += timedelta(hours=2)
    for number in range(11):
        purse.token(f"storage.read:/store/user/x{number}", ANY_AUDIENCE, timedelta(0))
    assert len(purse._slots) <= 11
    issuer.close()


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (reply({"error": "invalid_client"}, 401), CredentialWrong, "invalid_client"),
        (reply({"error": "invalid_scope", "error_description": SECRET}, 400), CredentialWrong, "(secret)"),
        (Reply(400, b"<html>no"), CredentialWrong, "no"),
        (Reply(500, b"<html>"), SourceSilent, "answered 500"),
        (Reply(429), SourceSilent, "answered 429"),
        (Reply(instead="silence"), SourceSilent, "got no answer"),
        (Reply(instead="reset"), SourceSilent, "got no answer"),
        (Reply(instead="cut", body=b"{" * 100), SourceSilent, "got no answer"),
        (Reply(302, headers={"Location": "http://127.0.0.1:1/"}), CredentialWrong, "answered 302"),
        (Reply(200, b"<html>login</html>"), CredentialWrong, "JSON"),
        (reply({"access_token": "0123-opaque", "expires_in": 60}), CredentialWrong, "no JWTs"),
        (reply({"access_token": jwt_of({"scope": "fts", "sub": "a"})}), CredentialWrong, "exp"),
        (reply({"access_token": jwt_of({"scope": "fts"}), "expires_in": -1}), CredentialWrong, "lasts"),
        (reply({"expires_in": 60}), CredentialWrong, "access_token"),
        (reply({"access_token": jwt_of({"sub": "a"}), "expires_in": 9}), CredentialWrong, "may not fts"),
    ],
)
def test_what_goes_wrong(fake: Fake, answer: Reply, kind: type[CredentialProblem], said: str) -> None:
    fake.replies = [answer]
    assert said in problem(source(fake), kind)


@pytest.mark.parametrize(
    ("discovery", "kind", "said"),
    [
        ({"issuer": "https://evil.example.org"}, CredentialWrong, "calls itself"),
        ({"token_endpoint": "http://evil.example.org/token"}, SourceSilent, "without TLS"),
        ({"token_endpoint": 7}, CredentialWrong, "AttributeError"),
    ],
)
def test_a_discovery_that_leads_astray(
    fake: Fake, discovery: dict[str, Any], kind: type[CredentialProblem], said: str
) -> None:
    fake.discovery = discovery
    assert said in problem(source(fake), kind)
    assert fake.forms == []


def test_nobody_listens() -> None:
    problem(OIDCCredentials("http://127.0.0.1:1", "aso", SECRET, patience=ONCE), SourceSilent)


def test_no_secret_goes_out_without_tls() -> None:
    problem(OIDCCredentials("http://iam.example.org", "aso", SECRET, patience=ONCE), SourceSilent)


def test_no_client(fake: Fake) -> None:
    assert fake.server
    with pytest.raises(CredentialMissing):
        OIDCCredentials(fake.server.url, "aso", lambda: "").credential(SERVICE)


def test_clocks_that_differ_are_said_once(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    fake.claims = {"iat": int(NOON.timestamp()) + 300}
    credentials = source(fake)
    credentials.tokens(ALICE, files(1))
    assert caplog.text.count("differ by 300 s") == 1


def test_a_new_secret_counts_at_once(fake: Fake) -> None:
    assert fake.server
    secrets = iter(f"{SECRET}{number}" for number in range(100))
    fake.discovery = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    credentials = OIDCCredentials(fake.server.url, "aso", lambda: next(secrets), now=fake.clock)
    credentials.tokens(ALICE, files(1))
    one, other = (form["client_secret"] for form in fake.forms)
    assert one != other


def test_its_own_text_holds_no_secret(fake: Fake) -> None:
    credentials = source(fake)
    assert SECRET not in repr(credentials) + repr(vars(credentials))


# -- how it is configured --------------------------------------------------------------------------


def test_settings_of_a_connection(fake: Fake) -> None:
    assert fake.server
    extra = {"source": "oidc", "issuer": fake.server.url, "managed_tokens": False, "overwrite": True}
    credentials = OIDCSettings.of(extra).credentials("aso", SECRET)
    credentials.tokens(ALICE, files(1))
    assert not credentials.managed
    assert fake.forms[1]["scope"] == "storage.modify:/store/user/alice storage.read:/store/user/alice"


@pytest.mark.parametrize(
    "wrong", [{}, {"issuer": "iam"}, {"issuer": "https://iam", "audience_parameter": "x"}]
)
def test_wrong_settings_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^(issuer|audience_parameter): "):
        OIDCSettings.of(wrong)


# -- a real issuer ---------------------------------------------------------------------------------


def test_with_a_certified_provider(tmp_path: Path) -> None:
    tls = sandbox_tls(tmp_path)
    scopes = ["fts", "offline_access", *(f"storage.{do}:/store/user" for do in ("read", "create"))]
    clients = {
        "aso": {"secret": SECRET, "scopes": [*scopes, "storage.read:/store/temp/user"]},
        "poor": {"secret": SECRET, "scopes": ["fts"]},
        "less": {"secret": SECRET, "scopes": ["fts"], "lenient": True},
    }
    with real_issuer(tls, clients) as provider:
        url = provider.url
        credentials = OIDCCredentials(url, "aso", SECRET, ca=str(tls.ca))
        credential = credentials.credential(SERVICE)
        assert credential.subject == "aso"
        assert timedelta(minutes=59) < credential.expires_at - datetime.now(UTC) <= timedelta(hours=1)
        for name in ("audience", "resource"):
            by_name = OIDCCredentials(url, "aso", SECRET, ca=str(tls.ca), audience_parameter=name)  # type: ignore[arg-type]
            reading, writing = map(unverified_claims, by_name.tokens(ALICE, files(1)))
            assert reading["scope"] == "storage.read:/store/temp/user/alice.1a2b offline_access"
            assert (reading["aud"], writing["aud"]) == (
                "https://t2.example.org:8443",
                "https://t1.example.org",
            )
        for client, secret, said in (
            ("aso", "wrong", "invalid_client"),
            ("poor", SECRET, "invalid_scope: requested scope is not allowed"),
            ("less", SECRET, "may not offline_access storage.read:/store/temp/user/alice.1a2b"),
        ):
            with pytest.raises(CredentialWrong, match=said):
                OIDCCredentials(url, client, secret, ca=str(tls.ca)).tokens(ALICE, files(1))
        with pytest.raises(SourceSilent, match="certificate"):
            OIDCCredentials(url, "aso", SECRET).credential(SERVICE)
