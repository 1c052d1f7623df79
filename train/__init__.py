"""Training runs: model, data, optimizer, loop, checkpoints, evaluation, export and the run's record."""
