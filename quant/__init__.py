"""Low-precision weights inside the training loop."""
