"""Credentials: where those of each identity come from, and what can be wrong with them."""
