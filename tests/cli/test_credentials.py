"""``aso credentials``: who is in trouble, and until when the others are not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import pytest
from click.testing import Result
from psycopg import Connection

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.credentials import (
    CredentialNote,
    DelegationNote,
    note_credentials,
    note_delegations,
)

Aso: TypeAlias = Callable[..., Result]
ENDS = datetime.now(UTC) + timedelta(days=3)
FQANS = ("/cms/uscms/Role=production",)


@pytest.fixture
def known(catalogue_url: str) -> Iterator[Connection]:
    with connect(catalogue_url) as conn:
        note_credentials(
            conn,
            [
                CredentialNote("alice@cms+uscms+production", "x509", "/DC=test/CN=alice", FQANS, ENDS),
                CredentialNote("bob", problem="no credential for bob: there is no /etc/aso/bob.pem"),
            ],
        )
        note_delegations(conn, [DelegationNote("fts3_cern", "alice@cms+uscms+production", "abcd", ENDS)])
        yield conn


def test_nothing_is_known_at_first(aso: Aso) -> None:
    assert "Nothing is known yet" in aso("credentials").output


@pytest.mark.usefixtures("known")
def test_who_is_in_trouble_comes_first(aso: Aso) -> None:
    output = aso("credentials").output
    assert output.index("bob") < output.index("alice")
    assert f"{ENDS:%Y-%m-%d %H:%M}" in output
    assert "there is no /etc/aso/bob.pem" in output
    assert "fts3_cern" in output


@pytest.mark.usefixtures("known")
def test_only_those_in_trouble(aso: Aso) -> None:
    output = aso("credentials", "--troubled").output
    assert "bob" in output
    assert "alice" not in output


@pytest.mark.usefixtures("known")
def test_for_programs(aso: Aso) -> None:
    row = json.loads(aso("credentials", "--json").output)
    assert [one["identity"] for one in row["credentials"]] == ["bob", "alice@cms+uscms+production"]
    assert row["credentials"][1]["fqans"] == list(FQANS)
    assert [one["fts_server"] for one in row["delegations"]] == ["fts3_cern"]
