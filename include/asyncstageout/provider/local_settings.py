"""Airflow's ``airflow_local_settings``, copied to ``$AIRFLOW_HOME/config`` by ``aso up`` and by the image."""

from __future__ import annotations

import sys

from asyncstageout.provider.preloading import preload

__all__: list[str] = []
"""Airflow takes over what this exports: nothing."""

preload(sys.argv)
