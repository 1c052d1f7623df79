"""What reads a trained model: evaluation, continuing a prompt, exports. Always the newest checkpoint, verified."""
