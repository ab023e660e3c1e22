"""Whom a TLS front end vouches for, and when its word counts."""

from __future__ import annotations

import hashlib
import hmac
import os
from ipaddress import ip_network
from pathlib import Path

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from asyncstageout.api.front_end import FrontEnd, UnsafeKey, checked_key, read_key, signature, speaks_for
from asyncstageout.core.callers import Caller, Role

KEY = bytes(range(20))
OLD_KEY = b"the key of last year"
PEER = "10.1.2.3"
FRONT_END = FrontEnd(
    keys=(KEY, OLD_KEY),
    peers=(ip_network("10.1.0.0/16"), ip_network("2001:db8::/32")),
    operators=frozenset({"crab-operator@group:crab3"}),
)
WHO = {
    "cms-auth-status": "OK",
    "cms-authn-method": "X509Cert",
    "cms-authn-login": "alice",
    "cms-authn-name": "Älice Example",
    "cms-authn-dn": "/DC=ch/DC=cern/CN=alice",
}


def request(headers: dict[str, str] | list[tuple[str, str]], peer: str = PEER) -> Request:
    pairs = list(headers.items()) if isinstance(headers, dict) else headers
    raw = [(name.lower().encode(), value.encode()) for name, value in pairs]
    return Request({"type": "http", "method": "GET", "path": "/", "headers": raw, "client": (peer, 1)})


def signed(key: bytes = KEY, **changes: str) -> dict[str, str]:
    headers = WHO | {name.replace("_", "-"): value for name, value in changes.items()}
    return headers | {"cms-authn-hmac": signature({n: v.encode() for n, v in headers.items()}, key)}


def test_the_signature_is_cmss() -> None:
    """Worked out by hand from the rule: lengths in hex, names sorted, the status left out."""
    headers = {"cms-authz-user": b"group:x", "cms-authn-login": b"alice", "cms-auth-status": b"OK"}
    text = b"hfv5hev7#cms-authn-loginalicecms-authz-usergroup:x"
    assert signature(headers, KEY) == hmac.new(KEY, text, hashlib.sha1).hexdigest()


def test_whom_it_names_is_let_in() -> None:
    assert FRONT_END.caller(request(signed())) == Caller("alice")


def test_names_of_headers_may_be_written_in_any_way() -> None:
    headers = {name.title(): value for name, value in signed().items()}
    assert FRONT_END.caller(request(headers)).name == "alice"


def test_each_key_counts_while_they_are_changed() -> None:
    assert FRONT_END.caller(request(signed(OLD_KEY))).name == "alice"


@pytest.mark.parametrize(
    ("roles", "role"),
    [
        ({"cms_authz_crab_operator": "group:crab3 site:t2-it-bari"}, Role.OPERATOR),
        ({"cms_authz_crab_operator": "group:other"}, Role.USER),
        ({"cms_authz_crab_operator": "site:crab3"}, Role.USER),
        ({"cms_authz_user": "group:crab3"}, Role.USER),
    ],
)
def test_operators_are_known_by_role_and_group(roles: dict[str, str], role: Role) -> None:
    assert FRONT_END.caller(request(signed(**roles))).role is role


@pytest.mark.parametrize("peer", ["10.1.255.255", "2001:db8::1", "::ffff:10.1.2.3"])
def test_it_speaks_from_its_addresses(peer: str) -> None:
    assert FRONT_END.caller(request(signed(), peer)).name == "alice"


def _without(name: str) -> dict[str, str]:
    return {key: value for key, value in signed().items() if key != name}


REFUSED = {
    "from elsewhere": request(signed(), "10.2.0.1"),
    "from no address": request(signed(), "testclient"),
    "not signed": request(_without("cms-authn-hmac")),
    "signed with another key": request(signed(b"a key of somebody else")),
    "signed with an empty key": request(signed(b"")),
    "another login than was signed": request(signed() | {"cms-authn-login": "bob"}),
    "a role that was not signed": request(signed() | {"cms-authz-crab-operator": "group:crab3"}),
    "a header left out": request(_without("cms-authn-dn")),
    "a header twice": request([*signed().items(), ("cms-authn-login", "alice")]),
    "a status twice": request([*signed().items(), ("cms-auth-status", "NONE")]),
    "it failed": request(signed(cms_auth_status="FAIL")),
    "a host": request(signed(cms_authn_method="HostIP")),
    "no account": request(signed(cms_authn_login="")),
    "no name of an account": request(signed(cms_authn_login="alice bob")),
    "a signature that is no text": request(signed() | {"cms-authn-hmac": "ä" * 40}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_everything_else_is_refused(case: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(HTTPException) as refused:
        FRONT_END.caller(REFUSED[case])
    assert refused.value.status_code == 401
    assert "refused" in caplog.text


def test_without_keys_or_addresses_nobody_is_let_in() -> None:
    for front_end in (FrontEnd((), FRONT_END.peers), FrontEnd((KEY,), ())):
        with pytest.raises(HTTPException):
            front_end.caller(request(signed()))


def test_it_does_not_speak_for_whom_it_did_not_ask() -> None:
    assert speaks_for(request(signed()))
    assert not speaks_for(request({"cms-auth-status": "NONE"}))
    assert not speaks_for(request({}))


@pytest.mark.parametrize(
    ("mode", "is_safe"), [(0o400, True), (0o440, True), (0o600, True), (0o444, False), (0o660, False)]
)
def test_a_key_that_others_can_read_is_no_key(tmp_path: Path, mode: int, is_safe: bool) -> None:
    path = tmp_path / "key"
    path.write_bytes(KEY)
    os.chmod(path, mode)  # noqa: PTH101
    if is_safe:
        assert read_key(path) == KEY
    else:
        with pytest.raises(UnsafeKey, match="chmod"):
            read_key(path)


def test_a_short_key_is_no_key() -> None:
    with pytest.raises(UnsafeKey, match="shorter"):
        checked_key(b"short", "here")
