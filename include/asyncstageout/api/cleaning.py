"""For operators: temporary copies that wait to be deleted, by site, and what sweeps found."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from asyncstageout.api.callers import Catalogue, Operator
from asyncstageout.api.limits import PAGE_ROWS
from asyncstageout.catalogue.cleaning_views import cleaning_status, failed_copies
from asyncstageout.catalogue.sweeps import sweep_views

router = APIRouter(tags=["cleaning"])

Site = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_]{1,100}$", description="Only at this site.")]
Rows = Annotated[int, Query(ge=1, le=PAGE_ROWS)]


class _View(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class SiteCleaning(_View):
    """The temporary copies at one site."""

    site: str
    due: int = Field(description="To be deleted now, or being deleted.")
    due_bytes: int
    oldest_due_at: datetime | None
    waiting: int = Field(description="The policy says later, or a try has failed.")
    resting: int = Field(description="Their file is on its way again, from another site.")
    failed: int = Field(description="Given up, for a person to look at; tried again every week.")
    failing_since: datetime | None = Field(description="Since when the storage lets nothing be deleted.")
    paused_until: datetime | None
    reason: str | None = Field(description="Why the storage is left alone.")


class GivenUp(_View):
    """A copy whose deletion was given up."""

    transfer_id: int
    site: str
    source_lfn: str
    username: str
    size_bytes: int
    tries: int
    failed_at: datetime
    due_at: datetime = Field(description="When it is tried again.")
    reason: str | None


class Sweep(_View):
    """What a walk through the temporary areas of a site found."""

    site: str
    older_than_days: int
    started_at: datetime
    ended_at: datetime | None = Field(description="Null: it is not over.")
    files: int
    size_bytes: int
    orphans: int = Field(description="Old enough, and no file of ours needs them.")
    orphan_bytes: int
    oldest_at: datetime | None


@router.get("/cleaning")
def list_cleaning(_: Operator, catalogue: Catalogue, *, site: Site = None) -> list[SiteCleaning]:
    """List the sites with temporary copies, or whose storage lets nothing be deleted, the worst first."""
    return [SiteCleaning.model_validate(view) for view in cleaning_status(catalogue, site)]


@router.get("/cleaning/failed")
def list_failed_deletions(
    _: Operator, catalogue: Catalogue, *, site: Site = None, limit: Rows = 100
) -> list[GivenUp]:
    """List copies whose deletion was given up, the latest first."""
    return [GivenUp.model_validate(copy) for copy in failed_copies(catalogue, site=site, limit=limit)]


@router.get("/cleaning/sweeps")
def list_sweeps(_: Operator, catalogue: Catalogue, *, site: Site = None) -> list[Sweep]:
    """List the last sweep of each site, the one with most to delete first."""
    return [Sweep.model_validate(view) for view in sweep_views(catalogue, site)]
