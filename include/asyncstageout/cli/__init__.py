"""``aso``: the platform on the command line. Each module beside this one adds its commands to :data:`app`."""

from __future__ import annotations

import sys
from importlib import import_module
from pkgutil import iter_modules

import typer
from rich.console import Console

app = typer.Typer(
    name="aso",
    help="AsyncStageOut: users' output files, moved to where they belong.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
)
console = Console(highlight=False)


class Advice(Exception):
    """Something a person can put right. The message says what is wrong, ``remedy`` what to do about it."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.remedy = remedy


def main() -> None:
    """Run ``aso``. An :class:`Advice` ends it with a sentence instead of a traceback, and code 1."""
    for module in iter_modules(__path__):
        if module.name != "__main__":
            import_module(f"{__name__}.{module.name}")
    try:
        app()
    except Advice as advice:
        complaint = Console(stderr=True, highlight=False)
        complaint.print(str(advice), style="red", markup=False, soft_wrap=True)
        complaint.print(advice.remedy, markup=False, soft_wrap=True)
        sys.exit(1)
