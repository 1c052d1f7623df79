"""Where results are written to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Around everything that writes to --out: its folder is made; a place that cannot be written to is the user's mistake."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as problem:
        raise UserError(f"--out {out}: {problem.strerror or problem}") from None
