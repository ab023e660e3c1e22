"""The bodies of the tasks of ``stageout_sites``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from psycopg import Connection

from asyncstageout.catalogue.site_sources import SiteSource, sources
from asyncstageout.clients.site_files import Found, find
from asyncstageout.provider.running import run_step
from asyncstageout.steps import load_sites
from asyncstageout.steps.recording import Summary

CA_VARIABLE = "ASO_SITES_CA"
"""Certificate authorities for sources behind https, for the command line too; unset: those of certifi."""

Context = Mapping[str, Any]


class UnknownSource(ValueError):
    """The form names a source that is not looked at."""

    def __init__(self, location: str) -> None:
        self.location = location
        super().__init__(
            f"there is no source {location}: `aso sites list` shows them, `aso sites load` adds one"
        )


def load(context: Context) -> dict[str, Any]:
    """Look at all sources, or at what the form names."""
    params = context["params"]

    def step(conn: Connection, _step_run: int) -> Summary:
        asked = [one for one in sources(conn) if params["source"] in (None, "", one.location)]
        if params["source"] and not asked:
            raise UnknownSource(params["source"])
        summary, _ = load_sites.load_sites(
            conn,
            asked,
            by="airflow",
            now=datetime.now(UTC),
            dry_run=bool(params["dry_run"]),
            site=params["site"] or None,
            finder=_find,
        )
        return summary

    return run_step(context, step).as_xcom()


def verdict(context: Context) -> dict[str, Any]:
    return run_step(context, lambda conn, _: load_sites.verdict(conn, now=datetime.now(UTC))).as_xcom()


def _find(source: SiteSource) -> Found:
    return find(source.location, source.site, ca=os.environ.get(CA_VARIABLE))
