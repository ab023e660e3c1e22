"""``aso`` in this process, against a catalogue and a platform folder of one test alone."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TypeAlias

import pytest
from click.testing import Result
from typer.testing import CliRunner

from asyncstageout import cli

Aso: TypeAlias = Callable[..., Result]


@pytest.fixture
def aso(catalogue_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Aso:
    """Run a command; ``typed`` is its input. An ``Advice`` is found in the result's ``exception``."""
    # Its log goes to what is the output when it is first imported, which should be no command's.
    import_module("airflow")
    for module in iter_modules(cli.__path__):
        if module.name != "__main__":
            import_module(f"asyncstageout.cli.{module.name}")
    monkeypatch.setenv("ASO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ASO_CATALOGUE_URL", catalogue_url)

    def run(*arguments: str, typed: str | bytes | None = None) -> Result:
        return CliRunner().invoke(cli.app, arguments, input=typed)

    return run
