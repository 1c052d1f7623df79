"""A ladder of runs: its file, the trunks that runs share, the table, and the queue on this machine."""
