"""What the commands in `train/` share."""
