"""The single memory: Postgres. The only SQL in the house."""
