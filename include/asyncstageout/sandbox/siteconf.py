"""The sandbox's sites describe themselves as CMS's do: one ``storage.json`` each, in folders as on CVMFS."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asyncstageout.sandbox.sites.names import site_pfn


def write_siteconf(folder: Path, sites: Sequence[str], *, port: int, fts: Sequence[str]) -> None:
    """Write ``<folder>/<site>/storage.json`` for each site.

    Args:
        port: of the sites' WebDAV.
        fts: endpoints of FTS servers; every other site names them the other way round.
    """
    for number, site in enumerate(sites):
        order = list(fts) if number % 2 == 0 else list(reversed(fts))
        path = folder / site / "storage.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(_description(site, port, order), indent=1))


def _description(site: str, port: int, fts: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "site": site,
            "volume": f"{site.split('_', 2)[2]}_Disk",
            "protocols": [
                {
                    "protocol": "XRootD",
                    "access": "global-ro",
                    "prefix": f"root://{site.lower().replace('_', '-')}.sandbox.test:1094/",
                },
                {
                    "protocol": "namespace",
                    "access": "virtual",
                    "rules": [{"lfn": "/+(store/.*)", "pfn": "/$1"}],
                },
                {
                    "protocol": "WebDAV",
                    "access": "global-rw",
                    "rules": [
                        {"lfn": "/+(.*)", "pfn": f"{site_pfn(site, '', port)}/$1", "chain": "namespace"}
                    ],
                },
            ],
            "type": "DISK",
            "rse": site,
            "fts": list(fts),
        }
    ]
