"""Debian's Chromium by Playwright, and axe-core in its pages."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

AXE = Path(__file__).parent / "axe/node_modules/axe-core/axe.min.js"
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE_MS = 20_000
"""Machines of tests are busy."""
RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")

Mode = Literal["light", "dark"]


def chromium() -> str:
    """Return the program. Skips the test where it, or axe, is not installed, but not in CI."""
    program = shutil.which("chromium")
    if not (program and AXE.exists()) and not os.environ.get("CI"):
        pytest.skip("Chromium (Debian package chromium) or axe-core (`make test` installs it) is not there")
    assert program, "no chromium"
    return program


@contextmanager
def browser() -> Iterator[Browser]:
    program = chromium()
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        yield running
        running.close()


def context(
    running: Browser, url: str, *, who: str = "olga", mode: Mode = "light", width: int = 1440, **options: Any
) -> BrowserContext:
    """Return a fresh profile of somebody, with nothing remembered."""
    made = running.new_context(
        viewport={"width": width, "height": 900}, color_scheme=mode, reduced_motion="reduce",
        locale="en-GB", timezone_id="Europe/Zurich", **options,
    )  # fmt: skip
    made.set_default_timeout(PATIENCE_MS)
    made.add_cookies([{"name": "who", "value": who, "url": url}])
    return made


@cache
def _axe() -> str:
    return AXE.read_text()


def violations(page: Page) -> list[str]:
    """Return what axe minds about a page, with the places; in the dark, only what differs there: colours."""
    page.evaluate(_axe())
    is_dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    rules = ["color-contrast"] if is_dark else RULES
    found = page.evaluate(f"axe.run({{runOnly: {json.dumps(rules)}, resultTypes: ['violations']}})")
    return [
        f"{one['id']} ({one['impact']}): {node['html'][:200]} {node['any'][0]['message'] if node['any'] else ''}"
        for one in found["violations"]
        for node in one["nodes"]
    ]
