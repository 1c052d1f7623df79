"""Expressions over columns: what they mean, and that they run no code."""

import numpy as np
import pytest

from common.errors import UserError
from scaling.runs.expression import evaluate
from scaling.runs.read import read_runs, select
from tests.support.scaling import PLAIN, scaling, simulated, written


def test_a_query_that_cannot_be_evaluated_names_the_columns(tmp_path):
    frame = read_runs([written(tmp_path, PLAIN)])
    assert select(frame, "parameters < 3e7 and tokens == 1e9", "--where").tolist() == [True, True, False]
    for query in ("size > 3", "parameters >", "name > 3", "parameters", "3", "True", "parameters < 0"):
        with pytest.raises(UserError, match="--where"):
            select(frame, query, "--where")


@pytest.mark.parametrize(
    "expression",
    [
        "parameters < 3e7 & tokens == 1e9 | loss > 3.9", "parameters < 3e7 and not (tokens != 1e9)", "~(loss < 3.7)",
        "1e7 < parameters <= 4e7", "parameters in [1e7, 4e7]", "parameters not in (1e7, 2e7)", "parameters == [1e7, 4e7]",
        "name == 'b'", "name in ['a', 'c']", "name.str.contains('a|b')", "not name.str.startswith('a')", "`odd name` > 1",
        "parameters == parameters.max()", "loss.between(3.6, 3.9)", "loss.isna()", "`odd name`.notna() and -loss < -3.6",
        "name.isin(['a']) or tokens / parameters < 60", "parameters ** 2 % 7 > 3", '"`a` & @b" != name',
    ],
)  # fmt: skip
def test_expressions_mean_what_they_mean_in_pandas(expression):
    frame = PLAIN.assign(**{"odd name": [1.0, 2.0, np.nan]})
    expected = frame.index.isin(frame.query(expression, engine="python").index)
    assert evaluate(expression, frame).tolist() == expected.tolist()


def test_expressions_compute(tmp_path):
    assert evaluate("log(loss) * 2 + 1", PLAIN).tolist() == pytest.approx((2 * np.log(PLAIN["loss"]) + 1).tolist())
    assert evaluate("4", PLAIN) == 4.0


def test_expressions_run_no_code(tmp_path):
    """Neither of pandas' ways out, nor Python's."""
    data, mark = written(tmp_path, simulated("chinchilla")), tmp_path / "mark"
    for expression in (
        f"@pd.io.common.os.system('touch {mark}')",
        f"loss.to_csv('{mark}')",
        f"loss.map(lambda x: open('{mark}', 'w'))",
        f"`loss` > 0 and @pd.io.common.os.system('touch {mark}')",
        f"loss.__class__.__init__.__globals__['os'].system('touch {mark}')",
        f"[open('{mark}', 'w') for x in [1]]",
        f"__import__('os').system('touch {mark}')",
        f"(x := open('{mark}', 'w'))",
        f"name.str.contains(open('{mark}', 'w'))",
        "f'{loss.values}' == 1",
        "9**9**9**9 > loss",
        "loss.eval('1')",
    ):
        for words in (["--where", expression], ["--rename", f"x={expression}"], ["--holdout", expression]):
            command = ["fit", "chinchilla", data] if words[0] == "--holdout" else ["table", data]
            answer = scaling(*command, *words)
            assert answer.code == 2, (expression, answer.out)
            assert len(answer.err.splitlines()) <= 5
    assert not mark.exists()


def test_text_among_numbers_is_still_text(tmp_path):
    """A column of "4" and "4WO" becomes numbers, and is compared with text as it was written."""
    written = "precision,loss\n4,3.0\n4,3.1\n4WO,3.2\n2,3.3\n,3.4\n"
    (tmp_path / "runs.csv").write_text(written)
    frame = read_runs([tmp_path / "runs.csv"], ["width=precision"])
    for expression, rows in (
        ("precision == '4WO'", [2]),
        ("precision == '4'", [0, 1]),
        ("precision == 4", [0, 1]),
        ("width in ['4', '4WO']", [0, 1, 2]),
        ("precision.isin(['2', '4WO'])", [2, 3]),
        ("precision.str.endswith('WO')", [2]),
        ("precision != '4WO' and loss < 3.15", [0, 1]),
    ):
        assert list(frame.index[select(frame, expression, "--where")]) == rows, expression
