"""What users type: exactly one JSON object, exit codes, messages of one to five lines, help at once."""

import subprocess
import sys
import warnings

import pandas as pd
import pytest

from common.errors import WorkFailed
from scaling.laws import LAWS
from tests.support.scaling import scaling, simulated, written

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
    "step-law": ["a", "b", "c"],
    "effective-size": ["E", "A", "B", "alpha", "beta", "weights", "activations"],
}  # fmt: skip


RUNS = {
    "downstream": ["--loss", 2.5],
    "qat-fraction": ["--parameters", 1e9, "--tokens", 2e10, "--bits", 4],
    "learning-rate": ["--tokens", 2e10, "--batch-tokens", 4096 * 256],
    "effective-size": ["--parameters", 1e8, "--tokens", 5e9, "--bits", 4, "--activation-bits", 8],
}


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
    run = RUNS.get(name, ["--parameters", 1e9, "--tokens", 2e10])
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
    words = ["fit", "over-training", folder / "over-training.csv", "--json", "--bootstrap", 50]
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
        "--loss-fit needs a law that takes the loss, and a fit of a loss law: not chinchilla and over-training"
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
    shown = scaling("fit", "power", folder / "over-training.csv", *words, "--bootstrap", 40).out
    assert "()" not in shown  # it has no source
    assert "nats per token" in shown
    assert scaling("predict", tmp_path / "fit", "--flops", 1e20, "--json").json["predictions"][0]["law"] == "power"
    assert scaling("report", tmp_path / "fit", "--out", tmp_path / "r.html").code == 0
    scaling("fit", "power", folder / "over-training.csv").assert_refused("no law 'power'", "--law-file")
    (tmp_path / "bad.py").write_text("1/0")
    scaling("fit", "power", folder / "over-training.csv", "--law-file", tmp_path / "bad.py").assert_refused("ZeroDivisionError")
    (tmp_path / "none.py").write_text("x = 1")
    scaling("fit", "power", folder / "over-training.csv", "--law-file", tmp_path / "none.py").assert_refused("defines no Law")


@pytest.mark.parametrize(
    "words, message",
    [
        (["fit", "chinchila", "DATA"], "did you mean 'chinchilla'?"),
        (["fit", "chinchilla", "nowhere.csv"], "nowhere.csv: no such file or directory"),
        (["fit", "chinchilla"], "Missing argument"),
        (["fit", "chinchilla", "DATA", "--bogus", "1"], "No such option"),
        (["fit", "chinchilla", "DATA", "--objective", "mse"], "huber-log or least-squares"),
        (["fit", "chinchilla", "DATA", "--fix", "Z=1"], "no such parameter; it has E, A, B, alpha, beta"),
        (["fit", "chinchilla", "DATA", "--fix", "E"], "is not NAME=VALUE"),
        (["fit", "chinchilla", "DATA", "--fix", "alpha=70"], "must lie between 0 and 10"),
        (["fit", "chinchilla", "DATA", "--where", "loss < 0"], "chooses none of 48 runs"),
        (["fit", "chinchilla", "DATA", "--holdout", "loss < 0"], "--holdout 'loss < 0' chooses none of 48 runs"),
        (["fit", "chinchilla", "DATA", "--holdout", "loss > 0"], "--holdout 'loss > 0' leaves no run to fit"),
        (["fit", "chinchilla", "DATA", "--loss", "nope"], "--loss nope: no column 'nope'"),
        (["fit", "chinchilla", "DATA", "--fix", "E=1", "--fix", "E=2"], "--fix E=1 and --fix E=2 contradict each other"),
        (["fit", "chinchilla", "DATA", "--bootstrap", "38"], "needs 39 draws or more"),
        (["table", "DATA", "--where", "loss > 100"], "chooses none of 48 runs"),
        (["table", "DATA", "--where", "loss > 100", "--json"], "chooses none of 48 runs"),
        (["table", "DATA", "--rename", "@y=3"], "is not NEW=OLD"),
        (["table", "DATA", "--rename", "x=loss", "--rename", "x=tokens"], "x has been renamed already"),
        (["table", "DATA", "--out", "t.xlsx"], "must end in .csv or .md or .json"),
        (["report", "nowhere.json", "--out", "r.pdf"], "type --out r.html"),
        (["simulate", "chinchilla", "--out", "/dev/null/x.csv"], "--out /dev/null/x.csv"),
        (["simulate", "chinchilla", "--out", "x.txt"], "type --out x.csv"),
        (["simulate", "chinchilla", "--noise", "0"], "nothing to cover"),
        (["simulate", "chinchilla", "--bootstrap", "10"], "needs 39 draws or more"),
        (["simulate", "chinchilla", "--truth", "E=-1"], "--truth E=-1: E must lie between 0 and inf"),
        (["simulate", "over-training", "--design", "DATA", "--where", "loss > 100"], "chooses none of 48 runs"),
        (["fit", "chinchilla", "DATA", "--where", "los < 3"], "no column 'los'; did you mean 'loss'?"),
        (
            ["fit", "chinchilla", "DATA", "--where", "tokens == tokens.max() and parameters == parameters.max()"],
            "cannot be fitted to 1 usable run",
        ),
        (["fit", "chinchilla", "DATA", "--weights", "w"], "--weights w: no such column"),
        (["predict", "DATA", "--parameters", "1e9"], "is not JSON"),
        (["predict", "nowhere.json", "--parameters", "1e9"], "No such file"),
        (["plan", "nowhere.json"], "give the budget as --flops C"),
        (["plan", "nowhere.json", "--gpu-hours", "3"], "needs --flops-per-gpu-second"),
        (["plan", "nowhere.json", "--flops", "-1"], "must be above 0"),
        (["plan", "nowhere.json", "--flops", "1e300"], "is too large"),
        (["plan", "nowhere.json", "--flops", "nan"], "must be above 0"),
        (["plan", "nowhere.json", "--flops", "1e20", "--flops-per-gpu-second", "1e14"], "goes with --gpu-hours"),
        (["plan", "nowhere.json", "--flops", "1e20", "--ladder-share", "2"], "must be below 1"),
        (
            ["plan", "nowhere.json", "--flops", "1e20", "--bits", "5,32"],
            "no 5 bits; it has 1, 1.58, 2, 3, 4, 6, 8",
        ),
        (["predict", "nowhere.json", "--qat-fraction", "1"], "must be below 1"),
        (["predict", "nowhere.json", "--tokens", "inf"], "is too large"),
        (["plan", "nowhere.json", "--flops", "1e20", "--bits", "a,b"], "no list of numbers"),
        (["simulate", "chinchilla", "--truth", "Q=1"], "no such parameter"),
        (["bogus"], "No such command"),
    ],
)
def test_a_wrong_request_says_what_to_type(folder, words, message):
    scaling(*[folder / "chinchilla.csv" if word == "DATA" else word for word in words]).assert_refused(message)


def test_work_that_fails_ends_with_one(folder, monkeypatch):
    def fail(*arguments, **options):
        raise WorkFailed("no start has a finite objective")

    monkeypatch.setattr("scaling.fit.fitting.optimise", fail)
    scaling("fit", "chinchilla", folder / "chinchilla.csv").assert_refused("no start", code=1)


@pytest.fixture(scope="module")
def chinchilla(folder):
    assert scaling("fit", "chinchilla", folder / "chinchilla.csv", "--out", folder / "c", "--bootstrap", 40).code == 0
    return folder / "c"


def test_predict_asks_for_what_a_law_needs_and_for_nothing_else(folder, chinchilla):
    scaling("fit", "isoflop", folder / "isoflop.csv", "--out", folder / "i", "--bootstrap", 40)
    scaling("predict", chinchilla, "--parameters", 1e9).assert_refused("type --tokens")
    scaling("predict", folder / "i", "--parameters", 1e9).assert_refused("type --flops")
    scaling("predict", chinchilla, "--parameters", -1, "--tokens", 1e9).assert_refused("--parameters -1 must be above 0")
    run = ["--parameters", 1e9, "--tokens", 1e10]
    scaling("predict", chinchilla, *run, "--flops", 1e15).assert_refused("not all three")
    scaling("predict", chinchilla, *run, "--bits", 4).assert_refused("--bits: chinchilla does not use it")
    scaling("predict", folder / "i", "--flops", 1e20, "--parameters", 1e9).assert_refused(
        "--parameters: isoflop does not use it"
    )
    by_flops = scaling("predict", chinchilla, "--parameters", 1e9, "--flops", 6e19, "--json").json
    assert by_flops["predictions"] == scaling("predict", chinchilla, *run, "--json").json["predictions"]


@pytest.mark.parametrize(
    "parameters, tokens, message",
    [
        (1e12, 1e13, "flops 6e+25 is"),
        (1e12, 1e13, "above the largest fitted"),
        (7, 140, "parameters 7 is"),
        (7, 140, "below the smallest fitted"),
        (1e9, 1e8, "tokens_per_parameter 0.1 is 25 times below the smallest fitted (2.5)"),
        (1e9, 2e12, "tokens_per_parameter 2e+03 is"),
    ],
)
def test_predictions_far_from_the_runs_say_so_to_both_sides(chinchilla, parameters, tokens, message):
    answer = scaling("predict", chinchilla, "--parameters", parameters, "--tokens", tokens)
    assert message in answer.err
    assert "1 warning on standard error" in answer.out  # for whoever keeps the table alone
    assert "warning" not in scaling("predict", chinchilla, "--parameters", 1e9, "--tokens", 2e10).err


def test_an_error_rate_is_never_below_zero(folder):
    scaling("fit", "downstream", folder / "downstream.csv", "--out", folder / "d", "--bootstrap", 40)
    row = scaling("predict", folder / "d", "--loss", 0.5, "--json").json["predictions"][0]
    assert row["value"] == 0  # the law knows no bounds, the forecast does
    assert row["low"] is row["law_low"] is None


def test_numpy_has_nothing_to_say(chinchilla):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scaling("predict", chinchilla, "--parameters", 1e40, "--tokens", 1e40).code == 0
        scaling("plan", chinchilla, "--flops", 1e40).assert_refused("times those of the largest fitted run", "--insist")
        assert scaling("plan", chinchilla, "--flops", 1e40, "--insist").code == 0


def test_an_interrupt_ends_with_130_and_one_line(monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("scaling.fit.simulate.simulate", interrupted)
    answer = scaling("simulate", "chinchilla")
    assert (answer.code, answer.out, answer.err.strip()) == (130, "", "interrupted")


def test_output_that_nobody_takes(folder):
    words = f"{sys.executable} -m scaling table {folder / 'chinchilla.csv'} --format csv"
    full = subprocess.run(f"{words} > /dev/full", shell=True, capture_output=True, text=True, check=False)
    assert (full.returncode, full.stderr) == (1, "error: standard output: No space left on device\n")
    short = subprocess.run(f"{words} | head -1", shell=True, capture_output=True, text=True, check=False)
    assert short.stderr == ""
    assert short.stdout.startswith("name,") or "parameters" in short.stdout


HEAVY = {"numpy", "pandas", "scipy", "matplotlib", "torch", "hydra"}


def heavy_imports(code, *words):
    """Which of the heavy modules a fresh interpreter has imported at the end of `code`, whose arguments are `words`."""
    code = f"import sys\n{code}\nprint('imported', *set(sys.modules) & {HEAVY!r})"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize("words", [["--help"], ["fit", "--help"]])
def test_help_imports_nothing_heavy(words):
    assert heavy_imports("from scaling.cli import main\nassert main(sys.argv[1:]) == 0", *words) == []


def test_the_trainers_default_fraction_imports_nothing_heavy():
    assert heavy_imports("from scaling.laws.qat import optimal_fraction\noptimal_fraction(2.3e9, 86e6, 4)") == []


def test_a_fit_imports_no_torch(folder):
    code = "from scaling.cli import main\nassert main(sys.argv[1:]) == 0"
    assert "torch" not in heavy_imports(code, "fit", "isoflop", str(folder / "isoflop.csv"), "--bootstrap", "40")
