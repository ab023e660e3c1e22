"""``python -m asyncstageout.cli``, where the ``aso`` script is not on the path."""

from __future__ import annotations

from asyncstageout.cli import main

main()
