"""Training rounds: the step, the round, its sources and its logs."""
