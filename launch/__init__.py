"""Starts the processes of runs, and dispatches the `foretrain` command."""

from launch.ours import find_ours_first

find_ours_first()
