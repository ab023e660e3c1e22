"""Faults on purpose: what dies, what is cut, and what must be true afterwards."""

from asyncstageout.steps.crashpoints import POINTS

MOVING = ("collect", "group", "submit", "sense", "update", "reconcile")
MOVING_POINTS = tuple(point for point in POINTS if point.split(".")[0] in MOVING)
"""Those that a file on its way comes by; other steps are killed in tests of their own."""
