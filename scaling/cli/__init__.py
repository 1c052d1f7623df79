"""The `scaling` command."""

from scaling.cli.commands import main

__all__ = ["main"]
