"""The laws: every Python file in this folder is one, and its name is the law's, with hyphens for underscores.

A new law is a new file here that defines one `Law`; nothing else names it. Folders hold what laws share.
"""

import importlib
import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.words import nearest

if TYPE_CHECKING:
    from scaling.laws.base.law import Law, Parameter

    LAWS: dict[str, Law]

__all__ = ["LAWS", "Law", "Parameter", "find_law", "law_names"]


def law_names() -> list[str]:
    """The names of the laws in this folder. Imports none of them, so that help texts can list them."""
    return [module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__) if not module.ispkg]


def find_law(name: str, file: str | Path | None = None) -> "Law":
    """A law by name, from this folder or from a Python file that defines `Law` objects at its top level.

    Raises:
        UserError: there is no such law, or the file cannot be read.
    """
    own = _laws_of_file(Path(file)) if file is not None else {}
    if name in own:
        return own[name]
    if name in law_names():
        return _laws_of(importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))[name]
    known = [*law_names(), *own]
    near = nearest(name, known)
    hint = f"; did you mean {near!r}?" if near else ""
    raise UserError(f"no law {name!r}{hint}\nlaws: {', '.join(known)} (your own: --law-file FILE.py)")


def __getattr__(name: str) -> Any:
    """`LAWS`, `Law` and `Parameter` when they are first asked for: they bring numpy, which help texts do without."""
    if name == "LAWS":
        return {law: find_law(law) for law in law_names()}
    if name in ("Law", "Parameter"):
        return getattr(importlib.import_module(f"{__name__}.base.law"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _laws_of(module: ModuleType) -> "dict[str, Law]":
    from scaling.laws.base.law import Law

    return {law.name: law for law in vars(module).values() if isinstance(law, Law)}


def _laws_of_file(path: Path) -> "dict[str, Law]":
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"--law-file {path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise UserError(f"--law-file {path} cannot be imported: {type(error).__name__}: {error}") from None
    laws = _laws_of(module)
    if not laws:
        raise UserError(f"--law-file {path} defines no Law; docs/laws.md has an example")
    return laws
