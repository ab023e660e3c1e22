"""``aso services``: who may submit for whom."""

from __future__ import annotations

import json

from asyncstageout.catalogue.config_changes import config_changes
from asyncstageout.catalogue.connection import connect
from asyncstageout.cli import Advice
from cli.conftest import Aso


def test_services_are_added_listed_and_removed(aso: Aso, catalogue_url: str) -> None:
    assert "No service" in aso("services").output
    assert "may act for everybody" in aso("services", "add", "crab", "--everybody").output
    assert "So it was before" in aso("services", "add", "crab", "--everybody").output
    assert (
        "may act for alice, bob" in aso("services", "add", "crab", "--user", "bob", "--user", "alice").output
    )
    (crab,) = json.loads(aso("services", "--json").output)
    assert (crab["name"], crab["may_act_for"]) == ("crab", ["alice", "bob"])
    assert "alice, bob" in aso("services").output
    assert "for itself alone" in aso("services", "remove", "crab").output
    assert isinstance(aso("services", "remove", "crab").exception, Advice)
    with connect(catalogue_url) as conn:
        changes = config_changes(conn, table="submitting_service")
    assert [change.after is None for change in changes] == [True, False, False]


def test_a_service_acts_for_somebody(aso: Aso) -> None:
    assert isinstance(aso("services", "add", "crab").exception, Advice)
    assert isinstance(aso("services", "add", "crab", "--user", "bob", "--everybody").exception, Advice)
