"""A local DBS, see docs/sandbox.md."""
