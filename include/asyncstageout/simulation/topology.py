"""Sites and links in classes: what is alike is reckoned once.

The k-th largest site has a share of ``k ** -exponent`` of all files, at either end; a link has the product of
its ends' shares. So few links are busy and most have a file now and then. The largest sites are classes of
their own; below them each class has four times the sites of the one before, which all count as its average.
"""

from __future__ import annotations

from typing import NamedTuple

LARGEST = 3
"""Sites that are classes of their own."""
GROWTH = 4


class SiteClass(NamedTuple):
    sites: float
    """How many; a part of a site where its links are shared out over several installations."""
    share: float
    """Of all files, for each of them."""


class LinkClass(NamedTuple):
    source: int
    """Place of the class in the list of site classes."""
    destination: int
    links: float
    share: float
    """Of all files, for all of them together."""


def site_classes(sites: int, exponent: float) -> list[SiteClass]:
    """Return the classes of so many sites, the largest first; the shares of all sites are 1 together."""
    weights = [rank**-exponent for rank in range(1, sites + 1)]
    total = sum(weights)
    classes, start, size = [], 0, 1
    while start < sites:
        part = weights[start : start + size]
        classes.append(SiteClass(len(part), sum(part) / len(part) / total))
        start += size
        if start >= LARGEST:
            size *= GROWTH
    # A last class of a few sites beside one of hundreds says nothing that an average does not.
    if len(classes) > LARGEST + 1 and classes[-1].sites < classes[-2].sites / GROWTH:
        before, last = classes[-2:]
        count = before.sites + last.sites
        share = (before.sites * before.share + last.sites * last.share) / count
        classes[-2:] = [SiteClass(count, share)]
    return classes


def link_classes(classes: list[SiteClass], installations: int = 1) -> list[LinkClass]:
    """Return the classes of links between all sites that one of so many equal installations serves."""
    return [
        LinkClass(
            source=i,
            destination=j,
            links=source.sites * destination.sites / installations,
            share=source.sites * source.share * destination.sites * destination.share,
        )
        for i, source in enumerate(classes)
        for j, destination in enumerate(classes)
    ]
