"""Processes that fork import once what all of their children need; a DAG that needs more is found here."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from asyncstageout.provider.preloading import MODULES, preload

PROJECT = Path(__file__).parents[2]

# Reads the DAG files, and what their tasks import, as a child of a process that preloaded.
_CHILD = """
import ast, importlib, json, sys
from pathlib import Path
from asyncstageout.provider.preloading import preload
preload(["airflow", "scheduler"])
before = set(sys.modules)
sys.path.insert(0, sys.argv[1])
for file in sorted(Path(sys.argv[1]).glob("*.py")):
    importlib.import_module(file.stem)
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "asyncstageout.provider":
            for one in node.names:
                importlib.import_module(f"asyncstageout.provider.{one.name}")
print(json.dumps(sorted(name for name in set(sys.modules) - before if name.startswith(("asyncstageout", "airflow.")))))
"""


@pytest.mark.parametrize(
    "command", [["scheduler"], ["celery", "worker", "--queues", "slow"], ["dag-processor"]]
)
def test_what_forks_preloads(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr(importlib, "import_module", imported.append)
    preload(["airflow", *command])
    assert imported == list(MODULES)


@pytest.mark.parametrize("command", [["triggerer"], ["api-server"], ["dags", "list"]])
def test_nothing_else_does(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr(importlib, "import_module", imported.append)
    preload(["airflow", *command])
    assert imported == []


def test_a_child_finds_all_that_our_dags_and_their_tasks_import() -> None:
    said = subprocess.run(
        [sys.executable, "-c", _CHILD, str(PROJECT / "dags")], capture_output=True, text=True, check=True
    )
    assert json.loads(said.stdout.splitlines()[-1]) == []
