"""Are these nodes fit for a run? `measure` runs on every process, `judge` compares, `worker` does both, `table` shows it."""
