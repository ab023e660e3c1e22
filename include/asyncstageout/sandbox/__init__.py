"""The embedded default: Postgres from a wheel, a local FTS, local sites with real files, a generator of days."""
