"""The laws, by the names users type, and laws of users' own."""

import difflib
import importlib.util
from pathlib import Path

from common.errors import UserError
from scaling.laws.base import Law, Parameter
from scaling.laws.downstream import DOWNSTREAM
from scaling.laws.learning_rate import LEARNING_RATE
from scaling.laws.loss import CHINCHILLA, ISOFLOP, OVER_TRAINING
from scaling.laws.qat import QAT_FRACTION, QAT_LOSS

LAWS: dict[str, Law] = {
    law.name: law for law in (CHINCHILLA, ISOFLOP, OVER_TRAINING, DOWNSTREAM, QAT_FRACTION, QAT_LOSS, LEARNING_RATE)
}

__all__ = ["LAWS", "Law", "Parameter", "find_law"]


def find_law(name: str, file: str | Path | None = None) -> Law:
    """A law by name; those of a Python file count too, which defines `Law` objects at its top level.

    Raises:
        UserError: there is no such law, or the file cannot be read.
    """
    laws = LAWS | (_laws_in(Path(file)) if file is not None else {})
    if name in laws:
        return laws[name]
    near = difflib.get_close_matches(name, laws, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"no law {name!r}{hint}\nlaws: {', '.join(laws)} (your own: --law-file FILE.py)")


def _laws_in(path: Path) -> dict[str, Law]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"--law-file {path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise UserError(f"--law-file {path} cannot be imported: {type(error).__name__}: {error}") from None
    laws = {law.name: law for law in vars(module).values() if isinstance(law, Law)}
    if not laws:
        raise UserError(f"--law-file {path} defines no Law; docs/laws.md has an example")
    return laws
