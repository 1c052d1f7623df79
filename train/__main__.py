"""`python -m train [overrides]`: one process of a run. `foretrain train` starts as many as the layout needs."""

import sys

from common.output import go_on_without_output
from parallel.environment import leave
from train.command.train import main

if __name__ == "__main__":
    go_on_without_output()
    leave(main(sys.argv[1:]))
