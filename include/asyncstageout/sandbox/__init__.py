"""The embedded default: Postgres from a wheel, a local FTS, sites with real files, a generator of days."""
