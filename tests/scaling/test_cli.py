"""What users type: exactly one JSON object, exit codes, messages of one to five lines, help at once."""

import subprocess
import sys

import pandas as pd
import pytest

from scaling.errors import WorkFailed
from scaling.laws import LAWS
from tests.scaling.commands import scaling, simulated, written

KEYS = ["law", "n", "parameters", "objective", "metrics", "holdout", "warnings"]
NAMES = {
    "chinchilla": ["E", "A", "B", "alpha", "beta"],
    "over-training": ["E", "a", "b", "eta"],
    "downstream": ["epsilon", "k", "gamma"],
    "isoflop": ["size_exponent", "size_coefficient", "tokens_exponent", "tokens_coefficient"],
    "qat-fraction": ["a"],
    "qat-loss": [
        "alpha", "beta", "gamma", "zeta", "eta", "theta", "kappa", "phi", "chi", "psi", "omega", "lambda", "mu", "nu", "xi",
        "rho",
    ],
    "learning-rate": ["a", "b"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("cli")
    for name in NAMES:
        written(place, simulated(name), f"{name}.csv")
    return place


@pytest.mark.parametrize("name", [name for name in NAMES if name != "qat-loss"])
def test_a_fits_json_has_the_keys_that_are_promised_and_is_what_predict_reads(folder, name):
    answer = scaling("fit", name, folder / f"{name}.csv", "--json", "--bootstrap", 100)
    plain = answer.json
    assert list(plain)[: len(KEYS)] == KEYS
    assert plain["law"] == name
    assert list(plain["parameters"]) == NAMES[name]
    for entry in plain["parameters"].values():
        assert list(entry) == ["value", "low", "high"]
        assert entry["low"] <= entry["value"] <= entry["high"]
    assert set(plain["objective"]) == {"name", "value"}
    assert set(plain["metrics"]) == {"mae", "rmse", "r2", "relative_error"}
    (folder / f"{name}.json").write_text(answer.out)
    run = ["--parameters", 1e9, "--tokens", 2e10, "--bits", 4, "--batch-tokens", 4096 * 256, "--loss", 2.5]
    predicted = scaling("predict", folder / f"{name}.json", *run, "--json").json["predictions"][0]
    assert predicted["low"] < predicted["value"] < predicted["high"]
    assert scaling("predict", folder / f"{name}.json", *run).code == 0


def test_the_laws_and_their_parameters_are_those_that_are_promised():
    assert {name: list(law.names) + list(law.derived) for name, law in LAWS.items()} == NAMES
    for law in LAWS.values():
        assert law.source
        assert law.text
        assert law.needs


def test_holdout_takes_runs_out_of_the_fit_and_says_whether_they_were_covered(folder):
    data = folder / "over-training.csv"
    plain = scaling("fit", "over-training", data, "--where", "parameters < 2e8", "--holdout", "parameters > 1e8", "--json").json
    frame = pd.read_csv(data)
    assert plain["n"] == (frame["parameters"] <= 1e8).sum()
    assert len(plain["holdout"]) == (frame["parameters"] > 1e8).sum()
    for row in plain["holdout"]:
        assert row["relative_error"] == pytest.approx((row["predicted"] - row["actual"]) / row["actual"])
        assert row["covered"] == (row["low"] <= row["actual"] <= row["high"])
    assert sum(row["covered"] for row in plain["holdout"]) >= len(plain["holdout"]) - 2
    shown = scaling("fit", "over-training", data, "--holdout", "parameters > 1e8")
    assert "of runs that were not fitted" in shown.out


def test_the_same_words_give_the_same_bytes(folder):
    words = ["fit", "chinchilla", folder / "chinchilla.csv", "--json", "--bootstrap", 50]
    assert scaling(*words).out == scaling(*words).out
    assert scaling(*words).out != scaling(*words, "--seed", 1).out


def test_a_loss_fit_chains_into_downstream_in_three_ways(folder):
    frame = simulated("over-training")
    frame["top1"] = LAWS["downstream"].formula(frame["loss"], epsilon=0.85, k=2.0, gamma=0.75)
    path = written(folder, frame, "both.csv")
    assert scaling("fit", "over-training", path, "--out", folder / "loss").code == 0
    words = ["fit", "downstream", path, "--error", "top1", "--holdout", "parameters > 3e8"]
    measured = scaling(*words, "--json").json["holdout"]
    assert all(abs(row["relative_error"]) < 1e-6 for row in measured)
    assert "from the measured loss" in scaling(*words).out
    chained = scaling(*words, "--loss-fit", folder / "loss", "--out", folder / "error", "--json").json["holdout"]
    assert any(abs(row["relative_error"]) > 1e-5 for row in chained)
    assert "from the loss that the loss fit predicts" in scaling(*words, "--loss-fit", folder / "loss").out
    run = ["--parameters", 4e8, "--tokens", 8e9, "--json"]
    own = scaling("predict", folder / "error", *run).json["predictions"][0]
    both = scaling("predict", folder / "loss", folder / "error", *run).json["predictions"]
    assert own["value"] == pytest.approx(both[1]["value"])
    assert own["low"] < own["value"] < own["high"]
    scaling("fit", "chinchilla", path, "--loss-fit", folder / "loss").assert_refused(
        "--loss-fit chains a loss law into downstream"
    )


def test_a_law_of_ones_own_is_a_formula_and_little_else(folder, tmp_path):
    (tmp_path / "laws.py").write_text(
        "from scaling.laws import Law, Parameter\n\n"
        "def power(flops, *, E, A, alpha):\n    return E + A * flops**-alpha\n\n"
        "POWER = Law(name='power', formula=power, parameters={\n"
        "    'E': Parameter(starts=(0, 1, 2)), 'A': Parameter(starts=(1, 100, 1e4), log=True),\n"
        "    'alpha': Parameter(starts=(0.05, 0.2))})\n"
    )
    words = ["--law-file", tmp_path / "laws.py"]
    plain = scaling("fit", "power", folder / "over-training.csv", *words, "--out", tmp_path / "fit", "--json").json
    assert list(plain["parameters"]) == ["E", "A", "alpha"]
    assert plain["metrics"]["r2"] > 0.8
    assert scaling("predict", tmp_path / "fit", "--flops", 1e20, "--json").json["predictions"][0]["law"] == "power"
    assert scaling("report", tmp_path / "fit", "--out", tmp_path / "r.html").code == 0
    scaling("fit", "power", folder / "over-training.csv").assert_refused("no law 'power'", "--law-file")
    (tmp_path / "bad.py").write_text("1/0")
    scaling("fit", "power", folder / "over-training.csv", "--law-file", tmp_path / "bad.py").assert_refused("ZeroDivisionError")
    (tmp_path / "none.py").write_text("x = 1")
    scaling("fit", "power", folder / "over-training.csv", "--law-file", tmp_path / "none.py").assert_refused("defines no Law")


def test_missing_columns_are_named_with_the_words_to_type(tmp_path):
    frame = (
        simulated("chinchilla")
        .rename(columns={"parameters": "n_params", "loss": "val_loss"})
        .drop(columns=["flops", "tokens_per_parameter"])
    )
    path = written(tmp_path, frame)
    answer = scaling("fit", "chinchilla", path)
    answer.assert_refused(
        "no columns 'parameters' and 'loss', which chinchilla needs", "--rename parameters=n_params --rename loss=val_loss"
    )
    assert (
        scaling(
            "fit", "chinchilla", path, "--rename", "parameters=n_params", "--loss", "val_loss", "--json", "--bootstrap", 50
        ).json["n"]
        == 48
    )
    scaling("fit", "downstream", path, "--loss", "val_loss").assert_refused("no column 'error'", "--rename error=")


@pytest.mark.parametrize(
    "words, said",
    [
        (["fit", "chinchila", "DATA"], "did you mean 'chinchilla'?"),
        (["fit", "chinchilla", "nowhere.csv"], "nowhere.csv: no such file or directory"),
        (["fit", "chinchilla"], "Missing argument"),
        (["fit", "chinchilla", "DATA", "--bogus", "1"], "No such option"),
        (["fit", "chinchilla", "DATA", "--objective", "mse"], "huber-log and least-squares"),
        (["fit", "chinchilla", "DATA", "--fix", "Z=1"], "no such parameter; it has E, A, B, alpha, beta"),
        (["fit", "chinchilla", "DATA", "--fix", "E"], "is not NAME=VALUE"),
        (["fit", "chinchilla", "DATA", "--fix", "alpha=7"], "must lie between 0 and 3"),
        (["fit", "chinchilla", "DATA", "--where", "loss < 0"], "chooses none of 48 runs"),
        (["fit", "chinchilla", "DATA", "--holdout", "loss < 0"], "chooses none of 48 runs"),
        (["fit", "chinchilla", "DATA", "--where", "los < 3"], "name 'los' is not defined"),
        (
            ["fit", "chinchilla", "DATA", "--where", "tokens == tokens.max() and parameters == parameters.max()"],
            "cannot be fitted to 1 usable run",
        ),
        (["fit", "chinchilla", "DATA", "--weights", "w"], "no column 'w'"),
        (["predict", "DATA", "--parameters", "1e9"], "is no JSON"),
        (["predict", "nowhere.json", "--parameters", "1e9"], "No such file"),
        (["plan", "nowhere.json"], "give the budget as --flops C"),
        (["plan", "nowhere.json", "--gpu-hours", "3"], "needs --flops-per-gpu-second"),
        (["plan", "nowhere.json", "--flops", "-1"], "must be above 0"),
        (["plan", "nowhere.json", "--flops", "1e20", "--bits", "a,b"], "no list of numbers"),
        (["simulate", "chinchilla", "--truth", "Q=1"], "no such parameter"),
        (["bogus"], "No such command"),
    ],
)
def test_a_wrong_request_says_what_to_type(folder, words, said):
    scaling(*[folder / "chinchilla.csv" if word == "DATA" else word for word in words]).assert_refused(said)


def test_work_that_fails_ends_with_one(folder, monkeypatch):
    def fail(*arguments, **options):
        raise WorkFailed("no start has a finite objective")

    monkeypatch.setattr("scaling.fit.optimise", fail)
    scaling("fit", "chinchilla", folder / "chinchilla.csv").assert_refused("no start", code=1)


def test_damaged_fits_are_refused(folder, tmp_path):
    text = scaling("fit", "learning-rate", folder / "learning-rate.csv", "--json", "--bootstrap", 20).out
    for name, content, said in (
        ("cut.json", text[: len(text) // 2], "is no JSON"),
        ("list.json", "[]", "is not a fit"),
        ("odd.json", text.replace('"weights"', '"wait"'), "is damaged, or of another version"),
        ("law.json", text.replace('"law": "learning-rate"', '"law": "gone"'), "no law 'gone'"),
    ):
        (tmp_path / name).write_text(content)
        scaling("predict", tmp_path / name, "--tokens", 1e9, "--batch-tokens", 1e6).assert_refused(name, said)


def test_predict_asks_for_what_a_law_needs(folder):
    scaling("fit", "chinchilla", folder / "chinchilla.csv", "--out", folder / "c", "--bootstrap", 20)
    scaling("predict", folder / "c", "--parameters", 1e9).assert_refused("type --tokens")
    scaling("predict", folder / "c", "--parameters", -1, "--tokens", 1e9).assert_refused("--parameters -1 must be above 0")
    by_flops = scaling("predict", folder / "c", "--parameters", 1e9, "--flops", 6e19, "--json").json
    assert (
        by_flops["predictions"]
        == scaling("predict", folder / "c", "--parameters", 1e9, "--tokens", 1e10, "--json").json["predictions"]
    )
    far = scaling("predict", folder / "c", "--parameters", 1e12, "--tokens", 1e13)
    assert "beyond 10 times the largest fitted compute" in far.err


def test_simulate_reports_coverage_and_writes_a_study(tmp_path):
    plain = scaling("simulate", "downstream", "--sets", 10, "--bootstrap", 50, "--json").json
    assert set(plain["coverage"]["parameters"]) == {"epsilon", "k", "gamma"}
    assert set(plain["coverage"]["forecast"]) == {"law", "run"}
    assert "covered" in scaling("simulate", "learning-rate", "--sets", 5, "--bootstrap", 50).out
    assert scaling("simulate", "over-training", "--out", tmp_path / "s.csv", "--noise", 0).code == 0
    again = scaling("fit", "over-training", tmp_path / "s.csv", "--json", "--bootstrap", 20).json
    for name, value in LAWS["over-training"].truth.items():
        assert again["parameters"][name]["value"] == pytest.approx(value, rel=1e-3)
    designed = scaling(
        "simulate", "over-training", "--design", tmp_path / "s.csv", "--sets", 3, "--bootstrap", 20, "--json"
    ).json
    assert designed["runs"] == 20


def test_help_imports_nothing_heavy_and_torch_is_never_imported():
    code = "import sys; from scaling.cli import main; code = main(sys.argv[1:]); print(code, *(set(sys.modules) & {%r}))"
    heavy = "', '".join(["numpy", "pandas", "scipy", "matplotlib", "torch", "hydra"])
    for words in (["--help"], ["fit", "--help"]):
        said = subprocess.run(
            [sys.executable, "-c", code.replace("%r", f"'{heavy}'"), *words], capture_output=True, text=True, check=True
        )
        assert said.stdout.splitlines()[-1] == "0"
    code = (
        "import sys, scaling.laws.qat as q; print(q.optimal_fraction(2.3e9, 86e6, 4), *(set(sys.modules) & {'HEAVY'}))".replace(
            "HEAVY", heavy[9:]
        )
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == [str(float(said.stdout.split()[0]))]


def test_the_direct_fraction_is_that_of_the_notes():
    """S = 53.5 gives 0.18, S = 32,558 gives 0.52; inverse table; nothing at or below S = 1."""
    from scaling.laws.qat import optimal_fraction

    assert optimal_fraction(2.3e9, 86e6, 4) == pytest.approx(0.184, abs=1e-3)
    assert optimal_fraction(1.4e12, 86e6, 4) == pytest.approx(0.523, abs=1e-3)
    for fraction, ratio in ((0.1, 18.6), (0.2, 65), (0.3, 268), (0.4, 1548), (0.5, 16464), (0.55, 77400)):
        assert optimal_fraction(ratio * 1e9, 1e9, 8) == pytest.approx(fraction, abs=2e-3)
    assert optimal_fraction(1e9, 1e9, 8) == optimal_fraction(1e8, 1e9, 8) == 0.0
    with pytest.raises(ValueError, match="above 0"):
        optimal_fraction(0, 1, 4)
