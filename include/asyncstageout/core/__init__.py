"""Pure rules: states, planning, outcomes, failures, naming. No clock, file, network or environment."""
