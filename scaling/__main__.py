"""`python -m scaling table | fit | predict | plan | report | simulate`."""

import sys

if __name__ == "__main__":
    try:
        from scaling.cli import main

        code = main(sys.argv[1:])
    except KeyboardInterrupt:  # while Python still imports
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
