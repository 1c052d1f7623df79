"""A law is one file: it is found by its name, says all about itself there, and is named nowhere else."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest

import scaling.laws
from common.errors import UserError
from scaling.laws import LAWS, Law, find_law, law_names
from scaling.laws.base.budget import Budget
from tests.support.scaling import scaling as command
from tests.support.scaling import simulated, written

POWER = """
from scaling.laws import Law, Parameter

def power(flops, *, E, A, alpha):
    return E + A * flops**-alpha

POWER = Law(name="steep-power", formula=power, parameters={
    "E": Parameter(starts=(0, 1, 2)), "A": Parameter(starts=(1, 100, 1e4), log=True), "alpha": Parameter(starts=(0.05, 0.2))})
"""


@pytest.mark.parametrize("name", law_names())
def test_a_file_defines_the_one_law_of_its_name(name):
    module = importlib.import_module(f"scaling.laws.{name.replace('-', '_')}")
    assert [value.name for value in vars(module).values() if isinstance(value, Law)] == [name]
    assert find_law(name) is LAWS[name]


def test_a_new_file_is_a_new_law_for_every_command(tmp_path, monkeypatch):
    (tmp_path / "steep_power.py").write_text(POWER)
    monkeypatch.setattr(scaling.laws, "__path__", [*scaling.laws.__path__, str(tmp_path)])
    assert "steep-power" in law_names()
    runs = written(tmp_path, simulated("over-training"))
    assert command("fit", "steep-power", runs, "--out", tmp_path / "fit", "--bootstrap", 40).code == 0
    plan = command("plan", tmp_path / "fit", "--flops", 1e20, "--json").json  # a loss law of size and tokens says the size
    assert plan["optimum"]["flops"] == pytest.approx(1e20)
    with pytest.raises(UserError, match="did you mean 'steep-power'"):
        find_law("steep-powr")


def test_no_file_outside_the_laws_names_one():
    room = Path(scaling.laws.__file__).parent
    names = "|".join([*law_names(), *(name.replace("-", "_") for name in law_names() if "-" in name)])
    # --qat-fraction is an option, qat_fraction a column of runs.
    pattern = re.compile(rf"(?<![-\w.])({names})(?![-\w])")
    for path in room.parent.rglob("*"):
        if path.suffix not in (".py", ".j2") or room in path.parents:
            continue
        text = re.sub(r"\bqat_fraction\b|\blearning_rate\b|downstream task", "", path.read_text(encoding="utf-8"))
        assert not pattern.findall(text), path


@pytest.mark.parametrize("name", law_names())
def test_a_law_says_what_the_other_rooms_ask_of_it(name):
    law = LAWS[name]
    assert law.role is not None
    assert law.design is not None
    assert set(law.truth) == set(law.names)
    assert set(law.columns) <= set(law.beyond)
    assert law.picture is not None


@pytest.mark.parametrize("name", ["chinchilla", "isoflop", "over-training", "qat-loss"])
def test_the_best_run_spends_the_budget_and_moves_with_it(name):
    law = LAWS[name]
    theta = np.array([[law.truth[key] for key in law.names]])
    small, large = (law.best_runs(theta, Budget(flops), bits=4.0) for flops in (1e20, 1e22))
    for best, flops in ((small, 1e20), (large, 1e22)):
        assert 6 * best.parameters[0] * best.tokens[0] == pytest.approx(flops)
    assert large.parameters[0] > small.parameters[0]
    assert large.tokens[0] > small.tokens[0]
    if small.loss is not None:
        assert large.loss[0] < small.loss[0]
