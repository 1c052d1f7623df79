"""`python -m launch local | slurm | ladder | status | preflight`."""

import sys

from launch.commands import main
from parallel.environment import leave

if __name__ == "__main__":
    leave(main(sys.argv[1:]))
