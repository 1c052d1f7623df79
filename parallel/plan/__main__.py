"""`python -m parallel.plan`: `foretrain layout`."""

import sys

from parallel.plan.commands import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
