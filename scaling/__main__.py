"""`python -m scaling table | fit | predict | plan | report | simulate`."""

import sys

from scaling.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
