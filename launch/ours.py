"""Our packages are found where this file lies, whatever PYTHONPATH holds: their names are common words, such as `train`.

Standard library only.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = frozenset({"common", "train", "parallel", "quant", "schedulers", "scaling", "configs", "launch"})


class OurPackages:
    """A finder of modules that knows our packages alone."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Where a package of ours is; None for all other modules."""
        return PathFinder.find_spec(name, [str(ROOT)]) if name in PACKAGES else None


def find_ours_first() -> None:
    """Put our packages before everything else."""
    if OurPackages not in sys.meta_path:
        sys.meta_path.insert(0, OurPackages)
