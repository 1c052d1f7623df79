"""Puts runs on machines, and dispatches the `foretrain` command."""
