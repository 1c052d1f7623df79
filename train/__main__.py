"""`python -m train [overrides]`: one process of a run. `foretrain train` is the same under another name."""

import sys

from parallel.environment import leave
from train.command.train import main

if __name__ == "__main__":
    leave(main(sys.argv[1:]))
