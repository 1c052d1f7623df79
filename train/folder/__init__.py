"""The folder of a run: its content, its lock, and the check of which run may continue it."""
