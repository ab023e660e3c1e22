"""CRAB's own interface, so that its clients work here by changing a host name (docs/how-to/crab.md)."""

from __future__ import annotations

from fastapi import APIRouter

from asyncstageout.api.crab import filemetadata, filetransfers, fileusertransfers

PREFIX = "/crabserver/{instance}"
"""The instance is CRAB's (prod, preprod, dev): every one is this catalogue."""

router = APIRouter(prefix=PREFIX, tags=["crab"])
router.include_router(fileusertransfers.router)
router.include_router(filetransfers.router)
router.include_router(filemetadata.router)
