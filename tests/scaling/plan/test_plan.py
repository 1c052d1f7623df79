"""Plans against closed forms, and their words against the trainer's own configuration."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from common.errors import UserError
from scaling.fit.file import as_plain, to_json
from scaling.fit.fitting import fit
from scaling.fit.predict import predict_run
from scaling.fit.simulate import study
from scaling.laws import LAWS
from scaling.laws.base.budget import Budget
from scaling.laws.qat import PAPER_A
from scaling.plan.choice import GIB
from scaling.plan.plan import plan
from scaling.plan.train_command import words_for
from scaling.show.plain import plan_plain
from scaling.show.tables import plan_table, prediction
from tests.support.scaling import few_starts, scaling, simulated, written
from train.config import load_config


@pytest.fixture(scope="module")
def fits():
    return {name: fit(LAWS[name], simulated(name), bootstrap=100) for name in LAWS if name != "qat-loss"}


@pytest.fixture(scope="module")
def exact():
    return {name: fit(LAWS[name], simulated(name, noise=0.0), bootstrap=0) for name in ("chinchilla", "over-training")}


def best_size(fitted, flops):
    """And its loss."""
    best = fitted.law.best_runs(fitted.theta[None], Budget(flops))
    return best.parameters[0], best.loss[0]


def test_the_optimum_of_chinchilla_is_equation_four(exact):
    """N = G (C / 6)^(beta / (alpha + beta)), G = (alpha A / (beta B))^(1 / (alpha + beta)): Hoffmann et al., equation 4."""
    law = exact["chinchilla"].values()
    for flops in (1e19, 1e21, 1e23):
        total = law["alpha"] + law["beta"]
        scale = (law["alpha"] * law["A"] / (law["beta"] * law["B"])) ** (1 / total)
        size = best_size(exact["chinchilla"], flops)[0]
        assert size == pytest.approx(scale * (flops / 6) ** (law["beta"] / total), rel=1e-3)


def test_the_optimum_of_over_training_is_a_fixed_ratio(exact):
    """M = (b / a)^(1 / (2 eta)): Gadre et al., equation 10."""
    law = exact["over-training"].values()
    best = plan([exact["over-training"]], 1e21).optimum
    assert best.tokens / best.parameters == pytest.approx((law["b"] / law["a"]) ** (1 / (2 * law["eta"])), rel=1e-2)


def test_alternatives_cost_what_the_law_says(fits):
    answer = plan([fits["chinchilla"]], 1e21)
    assert answer.optimum.flops == pytest.approx(1e21)
    assert answer.parameters_range is not None
    assert answer.parameters_range[0] < answer.optimum.parameters < answer.parameters_range[1]
    costs = [choice.cost for choice in answer.alternatives]
    assert min(costs) >= 0
    assert all(choice.flops == pytest.approx(1e21) for choice in answer.alternatives)
    worst = answer.alternatives[-1]
    # As much compute as is not lost, well spent, reaches the same loss.
    again = best_size(fits["chinchilla"], 1e21 * (1 - worst.wasted))[1]
    assert again == pytest.approx(worst.loss, rel=1e-4)


def test_what_is_served_is_paid_for_and_makes_the_model_smaller(fits):
    law, served = fits["chinchilla"], 3e10
    alone, answer = plan([law], 1e21), plan([law], 1e21, inference_tokens=served)
    best = answer.optimum
    assert best.parameters < alone.optimum.parameters
    assert best.flops + 2 * best.parameters * served == pytest.approx(1e21, rel=1e-9)
    # No size next to it is better for the same money, and what would be best without serving costs more.
    for factor in (0.97, 1.03):
        size = factor * best.parameters
        tokens = (1e21 - 2 * size * served) / (6 * size)
        assert law.law.value(law.theta[None], {"parameters": size, "tokens": np.array([tokens])})[0, 0] > best.loss
    naive = answer.alternatives[0]
    assert naive.name == "the best size without serving"
    assert naive.parameters == pytest.approx(alone.optimum.parameters, rel=1e-3)
    assert naive.cost > 0
    assert answer.parameters_range[0] < best.parameters < answer.parameters_range[1]
    with pytest.raises(UserError, match="no decoder with a vocabulary of 32768"):
        plan_plain(plan([law], 1e21, inference_tokens=1e30))


def test_memory_caps_the_size(fits):
    answer = plan([fits["chinchilla"]], 1e22, memory_gib=1.0)
    assert answer.optimum.parameters == pytest.approx(GIB / 2, rel=1e-3)
    assert any("the memory, not the compute" in text for text in answer.warnings)
    assert all(choice.parameters <= GIB / 2 for choice in answer.alternatives)
    with_bits = plan([fits["chinchilla"], fits["qat-fraction"]], 1e22, memory_gib=1.0, bits=[2, 4])
    assert [choice.bits for choice in with_bits.widths] == [2.0, 4.0]
    assert with_bits.widths[0].parameters > 1.9 * with_bits.widths[1].parameters
    share = with_bits.widths[1]
    log_ratio = np.log(share.tokens / (share.parameters * 4 / 8))
    assert share.qat_fraction == pytest.approx(np.exp(-PAPER_A / log_ratio), abs=0.01)
    assert any("what quantization costs is not in them" in text for text in with_bits.warnings)


def words_of(folder, fits, *words):
    """What `plan` prints to be typed, as one dictionary a run."""
    paths = []
    for one in fits:
        paths.append(folder / f"{one.law.name}.json")
        paths[-1].write_text(to_json(as_plain(one)))
    answer = scaling("plan", *paths, *words)
    assert answer.code == 0, answer.err
    lines = [line.split()[3:] for line in answer.out.splitlines() if line.startswith("python -m train ")]
    return answer, [dict(word.split("=", 1) for word in line) for line in lines]


def test_what_is_asked_for_is_in_the_command(fits, tmp_path):
    """Width and QAT fraction, batch and learning rate together, and a shape that the memory holds."""
    words = ["--flops", "1e21", "--bits", "4", "--memory-gib", "0.5", "--batch-tokens", "1e6"]
    answer, (run, *_) = words_of(tmp_path, [fits["chinchilla"], fits["qat-fraction"], fits["learning-rate"]], *words)
    assert "parameters of 4 bits" in answer.out
    assert (run["quant"], run["quant.bits"], run["train.batch_tokens"]) == ("qat", "4", "1000000")
    planned = load_config([f"{key}={value}" for key, value in run.items()])
    assert 0.97 * GIB < planned.model.shape.parameters <= GIB
    log_ratio = np.log(planned.train.tokens / (GIB * 4 / 8))
    assert planned.quant.start == pytest.approx(1 - np.exp(-PAPER_A / log_ratio), abs=0.01)
    assert planned.schedule.peak == pytest.approx(1e6 / 4096 * 4.6 * planned.train.tokens**-0.51, rel=0.2)
    assert "0.00" in next(line for line in answer.out.splitlines() if line.startswith("peak learning rate"))
    _, runs = words_of(tmp_path, [fits["chinchilla"], fits["qat-fraction"]], "--flops", "1e21", "--bits", "2,6")
    assert [run.get("quant.bits") for run in runs[:3]] == [None, "2", "6"]


def test_a_width_whose_fraction_is_nothing_gets_no_quantized_phase(fits):
    plain = words_for({}, 1e9, 1e8, name="x", bits=8, qat_fraction=0.0)
    assert not any(word.startswith("quant") for word in plain)
    assert "quant=qat" in words_for({}, 1e9, 1e8, name="x", bits=8)  # the trainer's own choice of the fraction
    law = LAWS["isoflop"]
    large = study(law, {**law.truth, "size_coefficient": 2.0}, law.design(), 0.003, np.random.default_rng(0))
    fitted = plan([fit(law, large, bootstrap=50), fits["qat-fraction"]], 1e21, bits=[8])
    assert fitted.optimum.tokens < fitted.optimum.parameters
    assert any("the law's QAT fraction is 0" in text for text in fitted.warnings)
    assert not any("quant" in word for word in plan_plain(fitted)["optimum"]["overrides"])


def test_fits_that_contradict_or_are_of_no_use_are_refused(fits):
    rate = fits["learning-rate"]
    for chosen, said in (
        ([fits["chinchilla"], fits["over-training"]], "chinchilla and over-training both give the size"),
        ([fits["chinchilla"], fits["isoflop"]], "chinchilla and isoflop both give the size"),
        ([fits["chinchilla"], replace(rate, law=replace(rate.law, name="own", answers=None))], "no use for a fit of own"),
        ([fits["chinchilla"], rate], "type --batch-tokens B"),
    ):
        with pytest.raises(UserError, match=said):
            plan(chosen, 1e21)
    with pytest.raises(UserError, match="isoflop gives the best size for compute alone"):
        plan([fits["isoflop"]], 1e21, memory_gib=1.0)


def test_plans_far_from_the_runs_say_so_to_both_sides(fits):
    def said(name, flops, **more):
        return " ".join(plan([fits[name]], flops, **more).warnings)

    assert "above the largest fitted" not in said("chinchilla", 1e21)
    assert "flops 1e+25 is" in said("chinchilla", 1e25)
    assert "below the smallest fitted" in said("chinchilla", 1e14)
    # The law's best ratio, 2.4 or so, is a law's that was fitted to 20 and more.
    assert "tokens_per_parameter" in said("over-training", 1e19)
    rows = plan([fits["chinchilla"]], 1e21).alternatives
    assert [row.far for row in rows if row.name.startswith("1280 ")] == [()]  # fitted up to 640, called near up to 1,280
    assert "tokens_per_parameter" in plan([fits["over-training"]], 1e19).alternatives[0].far


def test_a_qat_loss_fit_plans_width_fraction_and_size():
    fitted = fit(
        LAWS["qat-loss"],
        simulated("qat-loss", noise=0.0).iloc[::2],
        bootstrap=0,
        fixed=dict(list(LAWS["qat-loss"].truth.items())[:14]),
    )
    answer = plan([fitted], 3e21, memory_gib=0.5, bits=[1, 2, 4, 6])
    by_bits = {choice.bits: choice for choice in answer.widths}
    assert all(choice.parameters * choice.bits / 8 <= 0.5 * GIB * 1.0001 for choice in answer.widths)
    assert min(choice.cost for choice in answer.widths) == 0
    assert answer.optimum.loss == min(choice.loss for choice in answer.widths)
    best = by_bits[4.0]
    for shift in (-0.1, 0.1):  # no better fraction next to it
        other = fitted.predict({
            "parameters": np.array([best.parameters]), "bits": np.array([4.0]),
            "qat_tokens": np.array([(best.qat_fraction + shift) * best.tokens]),
            "fp_tokens": np.array([(1 - best.qat_fraction - shift) * best.tokens]),
        }).value[0]  # fmt: skip
        assert other > best.loss


def test_other_fits_add_error_learning_rate_and_size(fits):
    answer = plan([fits["chinchilla"], fits["downstream"], fits["learning-rate"]], 1e21, batch_tokens=4096 * 256)
    assert answer.optimum.error is not None
    assert 0 < answer.optimum.error < 1
    assert answer.optimum.learning_rate == pytest.approx(256 * 4.6 * answer.optimum.tokens**-0.51, rel=0.2)
    sized = plan([fits["isoflop"]], 1e21).optimum
    assert sized.parameters == pytest.approx(0.14 * 1e21**0.49, rel=0.1)
    assert sized.loss is None
    with pytest.raises(UserError, match="no plan follows from downstream alone"):
        plan([fits["downstream"]], 1e21)


def test_a_ladder_narrows_the_forecast_as_much_as_it_says():
    """Refit with the proposed runs added: the interval shrinks about as far as was promised."""
    law = few_starts("chinchilla")
    frame = simulated("chinchilla", columns={key: value[:24] for key, value in law.design().items()})
    before = fit(law, frame, bootstrap=300)
    answer = plan([before], 3e20, ladder_share=0.3)
    assert sum(run.flops for run in answer.ladder) <= 0.3 * 3e20
    assert answer.ladder_after < 0.9 * answer.ladder_before
    best = answer.optimum
    ratios = []
    for seed in range(3):
        random = np.random.default_rng(seed)
        added = frame.copy()
        for run in answer.ladder:
            true = law.formula(run.parameters, run.tokens, **law.truth) * np.exp(0.003 * random.normal())
            row = {"parameters": run.parameters, "tokens": run.tokens, "flops": run.flops, "loss": true, "name": run.name}
            added.loc[len(added)] = row | {"tokens_per_parameter": run.tokens / run.parameters}
        after = fit(law, added, bootstrap=300)
        goal = {"parameters": np.array([best.parameters]), "tokens": np.array([best.tokens])}
        widths = [forecast.law_high[0] - forecast.law_low[0] for forecast in (before.predict(goal), after.predict(goal))]
        ratios.append(widths[1] / widths[0])
    assert np.median(ratios) == pytest.approx(answer.ladder_after / answer.ladder_before, abs=0.3)


def test_where_no_ladder_helps_a_sentence_says_so(fits, tmp_path):
    answer, runs = words_of(tmp_path, [fits["chinchilla"]], "--flops", "1e21", "--ladder-share", "1e-6")
    assert "none of 1e+15 FLOPs together would narrow the forecast by 10 %" in answer.out
    assert len(runs) == 1
    few = fit(LAWS["chinchilla"], simulated("chinchilla").iloc[::3], bootstrap=100)
    fitted = plan([few], 1e21).ladder
    sizes = sorted({run.parameters for run in fitted})
    assert all(large > 1.4 * small for small, large in pairwise(sizes))


def test_no_plan_from_runs_of_one_ratio(tmp_path):
    frame = simulated("over-training")
    path = written(tmp_path, frame[np.isclose(frame["tokens_per_parameter"], 20)])
    assert scaling("fit", "over-training", path, "--out", tmp_path / "f").code == 0
    scaling("plan", tmp_path / "f", "--flops", "1e21").assert_refused("all runs have about 20 tokens per parameter")


def test_gpu_hours_are_flops(tmp_path):
    data = written(tmp_path, simulated("isoflop"))
    assert scaling("fit", "isoflop", data, "--out", tmp_path / "f", "--bootstrap", 40).code == 0
    words = ["plan", tmp_path / "f", "--json"]
    hours = scaling(*words, "--gpu-hours", "1000", "--flops-per-gpu-second", "4e14").json
    assert hours["optimum"] == scaling(*words, "--flops", "1.44e21").json["optimum"]


def test_a_plan_far_from_the_runs_leads_with_one_near_them(fits, capsys):
    """The law's best ratio is 3 or so, the fitted runs have 20 and more: what is planned first lies within a factor of two."""
    answer = plan([fits["over-training"]], 1e19)
    assert answer.near is not None
    assert answer.near.tokens / answer.near.parameters == pytest.approx(10.0)
    assert answer.near.loss > answer.optimum.loss
    plan_table(answer)
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("Near the fitted runs: ")
    assert second.startswith("An extrapolation: ")
    assert plan([fits["chinchilla"]], 1e21).near is None


def test_an_isoflop_plan_counts_compute_as_its_table_does():
    """A table whose FLOPs are 8 N D: the budget's tokens are those that such a table would have beside the best size."""
    flops, sizes = np.repeat(np.geomspace(1e18, 1e21, 4), 5), []
    for budget in flops[::5]:
        sizes += list(0.14 * budget**0.49 * np.geomspace(0.25, 4, 5))
    size = np.array(sizes)
    best = 0.14 * flops**0.49
    names = [f"run {number}" for number in range(len(size))]
    loss = 2 + 0.05 * np.log(size / best) ** 2
    frame = pd.DataFrame({"name": names, "flops": flops, "parameters": size, "tokens": flops / (8 * size), "loss": loss})
    optimum = plan([fit(LAWS["isoflop"], frame, bootstrap=40)], 1e22).optimum
    assert optimum.parameters == pytest.approx(0.14 * 1e22**0.49, rel=1e-6)
    assert 8 * optimum.parameters * optimum.tokens == pytest.approx(1e22, rel=1e-6)


def test_forecasts_and_plans_of_a_doubted_fit_begin_with_the_doubt(fits, capsys):
    doubted = replace(fits["over-training"], doubts=("it misses its own largest runs",))
    sentence = "Doubt this over-training fit: it misses its own largest runs."
    plan_table(plan([doubted], 1e19))
    assert capsys.readouterr().out.splitlines()[0] == sentence
    answer = predict_run([doubted], {"parameters": 1e9, "tokens": 2e10})
    prediction(answer)
    assert capsys.readouterr().out.splitlines()[0] == sentence
    assert answer["doubts"] == [sentence] == plan_plain(plan([doubted], 1e19))["doubts"]
