"""`python -P .../launch/worker.py MODULE ARGUMENTS...`: MODULE of this installation as the main module.

Started by its path, because `python -m train` runs any `train.py` that PYTHONPATH holds.
"""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    root = str(Path(__file__).resolve().parent.parent)
    sys.path.insert(0, root)
    import launch  # noqa: F401  puts our packages first

    sys.path.remove(root)
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
