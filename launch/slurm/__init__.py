"""Jobs on SLURM: a cluster's description, the checks before queueing, the script, the snapshot of the code."""
