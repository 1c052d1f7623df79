"""The `scaling` command in this process, and tables to feed it."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scaling.cli import main
from scaling.laws import LAWS
from scaling.simulate import study


class Answer:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        """Exactly one object, strictly JSON."""
        assert self.code == 0, self.err

        def refuse(word: str) -> None:
            raise AssertionError(f"{word} is not JSON")

        return json.loads(self.out, parse_constant=refuse)

    def assert_refused(self, *words: str, code: int = 2) -> None:
        assert self.code == code, self.out + self.err
        assert self.out == ""
        lines = self.err.splitlines()
        assert lines[0].startswith("error: "), self.err
        assert len(lines) <= 5, self.err
        assert "Traceback" not in self.err
        for word in words:
            assert word in self.err, self.err


def scaling(*words: object) -> Answer:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return Answer(code, out.getvalue(), err.getvalue())


def simulated(name: str, *, seed: int = 0, noise: float | None = None, columns: dict[str, Any] | None = None) -> pd.DataFrame:
    """A study of a law with its own constants."""
    law = LAWS[name]
    assert law.design is not None
    chosen = columns or law.design()
    return study(law, law.truth, chosen, law.noise if noise is None else noise, np.random.default_rng(seed))


def written(folder: Path, frame: pd.DataFrame, name: str = "runs.csv") -> Path:
    path = folder / name
    frame.to_csv(path, index=False)
    return path
