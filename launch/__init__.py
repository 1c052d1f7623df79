"""Starts the processes of runs, and dispatches the `foretrain` command."""
