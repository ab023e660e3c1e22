"""Makes HTML of templates, and says what a browser may do with it."""

from __future__ import annotations

from typing import Any

from fastapi.responses import HTMLResponse, Response, StreamingResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from asyncstageout.core.alert_rules import runbook
from asyncstageout.ui import places
from asyncstageout.ui.assets import ASSETS
from asyncstageout.ui.navigation import PAGES
from asyncstageout.ui.spans import SPANS
from asyncstageout.ui.tables import Shown
from asyncstageout.ui.words import FILTERS

HEADERS = {
    # Nothing from elsewhere, no script or style in the page itself; only Airflow's page may frame it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; form-action 'self'; frame-ancestors 'self'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "SAMEORIGIN",
    "Vary": "Cookie, Sec-Fetch-Dest",
}

_TEMPLATES = Environment(
    loader=PackageLoader("asyncstageout.ui"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
_TEMPLATES.filters |= FILTERS
SOON = Markup("<!-- soon -->")
_TEMPLATES.globals |= {
    "soon": SOON,
    "places": places, "assets": ASSETS, "pages": PAGES, "Shown": Shown,
    "runbook_of": runbook, "span_choices": [(name, name) for name in SPANS],
}  # fmt: skip


def rendered(template: str, *, status: int = 200, **context: Any) -> Response:
    """Return a page. What stands before ``{{ soon }}`` can be seen while the rest is still being made."""
    texts = _TEMPLATES.get_template(template).generate(context)
    first: list[str] = []
    for text in texts:
        if text == SOON:
            # All the rest at once: a browser that is given more and more paints nothing meanwhile.
            pieces = ("".join(part) for part in (first, texts))
            return StreamingResponse(pieces, status, headers=HEADERS, media_type="text/html")
        first.append(text)
    return HTMLResponse("".join(first), status, headers=HEADERS)
