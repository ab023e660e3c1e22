"""AsyncStageOut: users' output files, moved to where they belong, every step on record."""
