"""Builds the parts of a run from its configuration: model, initial weights, low-precision method, optimizer, engine."""
