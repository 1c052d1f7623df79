"""One run: model, data, optimizer, loop, evaluation and the run's record."""
