"""Uses of a trained model: evaluation, generation, export. All of them read the newest checkpoint, and verify it first."""
