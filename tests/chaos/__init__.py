"""Faults on purpose: what dies, what is cut, and what must be true afterwards."""
