"""Points of one run: found, asked for, and counted as one run."""

import numpy as np
import pandas as pd
import pytest

from common.errors import UserError
from scaling.fit.file import as_plain, read_fit, to_json
from scaling.fit.fitting import fit
from scaling.fit.intervals import BOOTSTRAP, STUDENT, corrected, group_degrees
from scaling.fit.result import parameter_table
from scaling.fit.simulate import study
from scaling.fit.warnings import leave_one_out
from scaling.laws import LAWS
from scaling.laws.base.columns import from_size_and_tokens
from scaling.runs.groups import find_groups
from tests.support.scaling import few_starts, scaling, written


def checkpoints(runs=10, points=12, *, luck=0.02, seed=0):
    """Runs of several checkpoints each, whose points share their run's luck."""
    law, random = LAWS["chinchilla"], np.random.default_rng(seed)
    size, number = np.repeat(np.geomspace(3e7, 3e9, runs), points), np.repeat(np.arange(runs), points)
    frame = study(law, law.truth, from_size_and_tokens(size, np.tile(1e10 * np.arange(1, points + 1), runs)), 0.001, random)
    frame["loss"] *= np.exp(luck * random.normal(size=runs)[number])
    return frame.assign(name=[f"row {row}" for row in range(len(frame))], shape=[f"shape {row}" for row in number])


def width(fitted, name="alpha"):
    row = parameter_table(fitted)[name]
    return row["high"] - row["low"]


def test_points_of_a_run_do_not_narrow_its_interval():
    frame, law = checkpoints(), few_starts("chinchilla")
    rows, runs = (fit(law, frame, group=group, bootstrap=300) for group in ("none", "shape"))
    assert (rows.draws.method, runs.draws.method) == (BOOTSTRAP, STUDENT)
    assert width(runs) > 1.5 * width(rows)
    assert runs.values() == rows.values()
    assert runs.labels.max() == 9


def test_rows_that_share_a_name_are_one_run_without_being_told():
    frame = checkpoints().assign(name=lambda rows: rows["shape"])
    labels, remarks = find_groups(frame, None)
    assert labels is not None
    assert "120 points of 10 runs" in remarks[0]
    assert find_groups(frame, "none") == (None, [])
    sizes = frame.assign(name="all of them")  # a name of several sizes names no run
    assert find_groups(sizes, None)[0] is None


def test_a_table_that_looks_like_checkpoints_is_pointed_at():
    _, remarks = find_groups(checkpoints(), None)
    assert "120 of 120 rows look like checkpoints of 10 runs" in remarks[0]
    assert "--group shape" in remarks[0]
    grid = checkpoints().assign(tokens=lambda rows: rows["parameters"] * np.tile(2.0 ** np.arange(12), 10))
    assert find_groups(grid, None)[1] == []
    with pytest.raises(UserError, match="--group nothing: no such column"):
        find_groups(grid, "nothing")


def test_leave_one_out_leaves_out_whole_runs():
    law, frame = few_starts("over-training"), checkpoints(runs=6)
    fitted = fit(law, frame, group="shape", bootstrap=0)
    optima = leave_one_out(fitted, law.to_solver(fitted.theta))
    assert len(optima) == 6
    without = fit(law, frame[frame["shape"] != "shape 5"], bootstrap=0)
    np.testing.assert_allclose(law.from_solver(optima[5]), without.theta, rtol=1e-3)


def test_correction_and_degrees_are_those_of_independent_runs_where_every_point_is_one():
    jacobian = np.random.default_rng(0).normal(size=(9, 3))
    residuals, each = np.arange(9.0), np.arange(9)
    hat = jacobian @ np.linalg.pinv(jacobian)
    np.testing.assert_allclose(corrected(residuals, jacobian, each), residuals / np.sqrt(1 - np.diag(hat)))
    assert group_degrees(jacobian, each, 3) == 6
    labels = each // 3
    block = hat[:3, :3]
    expected = np.linalg.solve(np.eye(3) - block, residuals[:3])
    gentle = np.linalg.eigvalsh(block).max() < 0.8  # no cap on what one run may weigh
    if gentle:
        np.testing.assert_allclose(corrected(residuals, jacobian, labels)[:3], expected)
    np.testing.assert_allclose(hat @ hat, hat, atol=1e-12)


def test_groups_go_through_the_command_and_the_file(tmp_path):
    data = written(tmp_path, checkpoints())
    plain = scaling("fit", "chinchilla", data, "--group", "shape", "--bootstrap", 50, "--json").json
    assert plain["intervals"]["method"] == STUDENT
    fitted = fit(few_starts("chinchilla"), checkpoints(), group="shape", bootstrap=50)
    (tmp_path / "fit.json").write_text(to_json(as_plain(fitted)))
    pd.testing.assert_series_equal(pd.Series(read_fit(tmp_path).labels), pd.Series(fitted.labels))
    scaling("fit", "chinchilla", data, "--group", "shpe").assert_refused("--group shpe")
    scaling("fit", "isoflop", data, "--group", "shape").assert_refused("leave it out")
