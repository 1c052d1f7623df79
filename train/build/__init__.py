"""From a configuration to the parts of a run: model, initial weights, low-precision method, optimizer, engine."""
