"""Where things are shown: paths below the room, the same for links in pages and for links from elsewhere.

Each returns a path with its parameters quoted; ``Page.url`` puts the room before it.
"""

from __future__ import annotations

from urllib.parse import quote, urlencode

OVERVIEW, LINKS, SITES = "/", "/links", "/sites"
ALERTS = "/alerts"


def path(*parts: object, **query: object) -> str:
    """Return a path of these parts; None leaves a parameter out.

    >>> path("sites", "T2 X/Y", range="1h", unit=None)
    '/sites/T2%20X%2FY?range=1h'
    """
    found = "".join("/" + quote(str(part), safe="") for part in parts) or "/"
    given = [(name, value) for name, value in query.items() if value is not None]
    return f"{found}?{urlencode(given, doseq=True)}" if given else found


def link(source: str, destination: str) -> str:
    return path("links", source, destination)


def site(name: str) -> str:
    return path("sites", name)


def alert(number: int) -> str:
    return path("alerts", number)


def runbook(name: str) -> str:
    return path("runbooks", name)
