"""The `scaling` command in this process, and runs, records and laws to feed it."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scaling.cli import main
from scaling.fit.simulate import study
from scaling.laws import LAWS, Law, Parameter


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


def few_starts(name: str, count: int = 24) -> Law:
    """A law fitted from so many random starts, not from its whole grid: enough where a test is about something else."""
    return replace(LAWS[name], num_starts=count)


def written(folder: Path, frame: pd.DataFrame, name: str = "runs.csv") -> Path:
    path = folder / name
    frame.to_csv(path, index=False)
    return path


def line(tokens: Any, *, p: Any, q: Any) -> Any:
    """A straight line, whose fit and intervals have closed forms."""
    return p + q * tokens


LINE = Law(
    name="line",
    formula=line,
    parameters={name: Parameter(starts=(-1.0, 1.0), low=-np.inf) for name in "pq"},
    objective="least-squares",
)


X = {"tokens": np.linspace(-1.0, 2.0, 12)}


Y = 0.5 - 2.0 * X["tokens"] + 0.1 * np.random.default_rng(3).normal(size=12)
PLAIN = pd.DataFrame(
    {"name": list("abc"), "parameters": [1e7, 2e7, 4e7], "tokens": [1e9, 1e9, 2e9], "loss": [4.0, 3.8, 3.5]},
)
