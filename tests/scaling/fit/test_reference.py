"""Published fits on published runs. The data is not ours to carry; these tests skip where it is not at hand."""

import json

import numpy as np
import pandas as pd
import pytest

from tests.support.scaling import scaling

# Table 1 of Gadre et al.: five runs for the loss, one more for the error.
FIVE = "(tokens_per_parameter == 20 and parameters < 1e9) or (tokens_per_parameter == 320 and parameters < 2e7)"
SIX = "(tokens_per_parameter == 20 and parameters < 2e9) or (tokens_per_parameter == 320 and parameters < 2e7)"
LARGE = "parameters > 1e9"
NOT_SEEN = "parameters > 5e9 or (parameters > 1e9 and tokens_per_parameter > 20)"


@pytest.fixture(scope="module")
def c4(shared, tmp_path_factory):
    data, out = shared / "data" / "overtraining_c4.csv", tmp_path_factory.mktemp("c4")
    # Table 1 counts 79 M, 154 M and 411 M once each at 20 tokens per parameter: the file has no others below 1 B.
    loss = scaling("fit", "over-training", data, "--where", FIVE, "--holdout", LARGE, "--out", out / "loss", "--json").json
    words = ["--where", SIX, "--holdout", NOT_SEEN, "--loss-fit", out / "loss", "--json"]
    errors = {name: scaling("fit", "downstream", data, "--error", name, *words).json for name in ("error_17", "error_46")}
    return loss, errors


def values(plain):
    return {name: entry["value"] for name, entry in plain["parameters"].items()}


def relative(plain):
    return [abs(row["relative_error"]) for row in plain["holdout"]]


def test_the_loss_law_of_table_six(c4):
    loss, _ = c4
    assert loss["n"] == 5
    assert [f"{value:.3g}" for value in values(loss).values()] == ["1.51", "141", "190", "0.121"]


def test_the_error_laws_of_table_six(c4):
    _, errors = c4
    assert [f"{value:.3g}" for value in values(errors["error_17"]).values()] == ["0.85", "2.08", "0.756"]
    assert list(values(errors["error_46"]).values()) == pytest.approx([0.7589, 1.2885, 0.9722], abs=1e-4)
    assert errors["error_17"]["n"] == 6


def test_held_out_losses_and_errors_of_the_paper(c4):
    loss, errors = c4
    assert relative(loss) == pytest.approx([0.0078, 0.0150, 0.0430], abs=1e-4)
    assert [row["predicted"] for row in loss["holdout"]] == pytest.approx([2.6361, 2.5094, 2.2799], abs=1e-4)
    assert [row["predicted"] for row in errors["error_17"]["holdout"]] == pytest.approx([0.5380, 0.4789], abs=1e-4)
    assert relative(errors["error_17"]) == pytest.approx([0.0958, 0.0014], abs=1e-4)
    assert relative(errors["error_46"]) == pytest.approx([0.0308, 0.0007], abs=2e-4)


def test_intervals_at_five_points_are_honest(c4):
    loss, errors = c4
    assert any("1 residual degree of freedom" in text for text in loss["warnings"])
    for plain in (loss, *errors.values()):
        assert all(row["covered"] for row in plain["holdout"])
    assert loss["intervals"]["method"] == "Student-t"


@pytest.fixture(scope="module")
def points(shared):
    return shared / "data" / "chinchilla_points.csv"


def test_chinchilla_without_its_five_highest_losses(points):
    frame = pd.read_csv(points)
    limit = frame["loss"].nlargest(5).min()
    plain = scaling("fit", "chinchilla", points, "--where", f"loss < {float(limit)!r}", "--bootstrap", 300, "--json").json
    assert plain["n"] == 240
    assert plain["objective"]["value"] <= 1.02284e-3
    published = {
        "E": (1.8172, 0.03),
        "A": (482.01, 124.58),
        "B": (2085.43, 1293.23),
        "alpha": (0.3478, 0.02),
        "beta": (0.3658, 0.02),
    }
    for name, (value, deviation) in published.items():
        entry = plain["parameters"][name]
        assert abs(entry["value"] - value) < deviation
        assert entry["low"] < value < entry["high"]


def test_the_published_parameters_have_the_published_objective(points):
    frame = pd.read_csv(points).sort_values("loss").iloc[:-5]
    predicted = 1.8172 + 482.01 * frame["parameters"] ** -0.3478 + 2085.43 * frame["tokens"] ** -0.3658
    size = np.abs(np.log(predicted) - np.log(frame["loss"]))
    total = np.where(size < 1e-3, size**2 / 2, 1e-3 * (size - 5e-4)).sum()
    assert total == pytest.approx(1.02284e-3, rel=1e-4)


def test_with_all_points_the_data_exponent_moves_and_the_five_are_named(points):
    plain = scaling("fit", "chinchilla", points, "--bootstrap", 100, "--json").json
    assert plain["n"] == 245
    assert plain["parameters"]["beta"]["value"] == pytest.approx(0.453, abs=0.01)
    assert plain["parameters"]["alpha"]["value"] == pytest.approx(0.349, abs=0.01)
    said = json.dumps(plain["warnings"])
    assert all(f"point_00{number}" in said for number in (0, 1, 2, 3))


# arXiv 2502.06857: L = E + A / N^alpha + B / D^beta, sum of Huber's loss of log residuals at delta 1e-4.
@pytest.mark.parametrize(
    ("runs", "published"),
    [("hot_100b+", 6.9233e-4), ("hot", 2.07602e-4), ("cool_end", 2.05941e-4), ("slim_chinchilla", 1.33978e-5)],
)
def test_gemstones_objectives_at_the_published_delta(shared, runs, published):
    data = shared / "data" / "runs" / "gemstones.csv"
    words = ["--where", f"fit_set == '{runs}'", "--delta", 1e-4, "--bootstrap", 0, "--json"]
    plain = scaling("fit", "chinchilla", data, *words).json
    assert plain["objective"]["value"] <= published * 1.0001
    assert plain["objective"]["delta"] == 1e-4


def test_checkpoints_of_one_run_are_one_run(shared):
    """770 checkpoints of 22 runs: taken for 770 runs, alpha seemed known five times better than it is."""
    data = shared / "data" / "runs" / "gemstones.csv"
    words = ["--where", "fit_set == 'hot'", "--bootstrap", 200, "--json"]
    rows, runs = (scaling("fit", "chinchilla", data, *words, *more).json for more in (["--group", "none"], []))
    width = [plain["parameters"]["alpha"]["high"] - plain["parameters"]["alpha"]["low"] for plain in (rows, runs)]
    assert width[1] > 2 * width[0]
    assert any("220 points of 22 runs" in text for text in runs["warnings"])


@pytest.mark.parametrize(
    ("law", "words", "says"),
    [
        ("over-training", ["overtraining_c4.csv", "--where", "tokens_per_parameter <= 40"], "misses the"),
        ("chinchilla", ["runs/data_constrained.csv"], "explains 30 %"),
        ("chinchilla", ["runs/qat_from_start.csv"], "explains"),
    ],
)
def test_public_studies_that_a_law_does_not_describe_say_so_in_the_first_line(shared, law, words, says):
    answer = scaling("fit", law, shared / "data" / words[0], *words[1:], "--bootstrap", 50)
    first = answer.out.splitlines()[0]
    assert first.startswith(f"Doubt this {law} fit: "), answer.out
    assert says in first, first
