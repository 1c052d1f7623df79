"""Plans against closed forms, and their words against the trainer's own configuration."""

import numpy as np
import pytest

from parallel.shape import ModelShape
from scaling.errors import UserError
from scaling.fit import fit
from scaling.laws import LAWS
from scaling.laws.qat import PAPER_A
from scaling.overrides import common_context, shape_for, words_for
from scaling.plan import GIB, best_sizes, plan
from tests.scaling.commands import scaling, simulated, written
from train.config import load_config, require


@pytest.fixture(scope="module")
def fits():
    return {name: fit(LAWS[name], simulated(name), bootstrap=100) for name in LAWS if name != "qat-loss"}


@pytest.fixture(scope="module")
def exact():
    return {name: fit(LAWS[name], simulated(name, noise=0.0), bootstrap=0) for name in ("chinchilla", "over-training")}


def test_the_optimum_of_chinchilla_is_equation_four(exact):
    """N = G (C / 6)^(beta / (alpha + beta)), G = (alpha A / (beta B))^(1 / (alpha + beta)): Hoffmann et al., equation 4."""
    law = exact["chinchilla"].values()
    for flops in (1e19, 1e21, 1e23):
        total = law["alpha"] + law["beta"]
        scale = (law["alpha"] * law["A"] / (law["beta"] * law["B"])) ** (1 / total)
        size = best_sizes(exact["chinchilla"], exact["chinchilla"].theta[None], flops)[0][0]
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
    again = best_sizes(fits["chinchilla"], fits["chinchilla"].theta[None], 1e21 * (1 - worst.wasted))[1][0]
    assert again == pytest.approx(worst.loss, rel=1e-4)


def test_inference_makes_the_model_smaller_and_stays_in_the_budget(fits):
    answer = plan([fits["chinchilla"]], 1e21, inference_tokens=1e12)
    lifetime = answer.inference[0]
    assert lifetime.parameters < answer.optimum.parameters
    assert lifetime.flops + 2 * lifetime.parameters * 1e12 == pytest.approx(1e21, rel=1e-6)


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


def test_a_qat_loss_fit_plans_width_fraction_and_size():
    found = fit(
        LAWS["qat-loss"],
        simulated("qat-loss", noise=0.0).iloc[::2],
        bootstrap=0,
        fixed=dict(list(LAWS["qat-loss"].truth.items())[:14]),
    )
    answer = plan([found], 3e21, memory_gib=0.5, bits=[1, 2, 4, 6])
    by_bits = {choice.bits: choice for choice in answer.widths}
    assert all(choice.parameters * choice.bits / 8 <= 0.5 * GIB * 1.0001 for choice in answer.widths)
    assert min(choice.cost for choice in answer.widths) == 0
    assert answer.optimum.loss == min(choice.loss for choice in answer.widths)
    best = by_bits[4.0]
    for shift in (-0.1, 0.1):  # no better fraction next to it
        other = found.predict({
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
    law = LAWS["chinchilla"]
    frame = simulated("chinchilla", columns={key: value[:24] for key, value in law.design().items()})
    before = fit(law, frame, bootstrap=600)
    answer = plan([before], 3e20, ladder_share=0.3).ladder
    assert answer is not None
    assert sum(run.flops for run in answer.runs) <= 0.3 * 3e20
    assert answer.after < 0.9 * answer.before
    ratios = []
    for seed in range(4):
        random = np.random.default_rng(seed)
        added = frame.copy()
        for run in answer.runs:
            true = law.formula(run.parameters, run.tokens, **law.truth) * np.exp(0.003 * random.normal())
            row = {"parameters": run.parameters, "tokens": run.tokens, "flops": run.flops, "loss": true, "name": run.name}
            added.loc[len(added)] = row | {"tokens_per_parameter": run.tokens / run.parameters}
        after = fit(law, added, bootstrap=600)
        best = plan([before], 3e20).optimum
        goal = {"parameters": np.array([best.parameters]), "tokens": np.array([best.tokens])}
        widths = [forecast.law_high[0] - forecast.law_low[0] for forecast in (before.predict(goal), after.predict(goal))]
        ratios.append(widths[1] / widths[0])
    assert np.median(ratios) == pytest.approx(answer.after / answer.before, abs=0.3)


def test_no_plan_from_runs_of_one_ratio(tmp_path):
    frame = simulated("over-training")
    path = written(tmp_path, frame[np.isclose(frame["tokens_per_parameter"], 20)])
    assert scaling("fit", "over-training", path, "--out", tmp_path / "f").code == 0
    scaling("plan", tmp_path / "f", "--flops", "1e21").assert_refused("all runs have about 20 tokens per parameter")


def test_gpu_hours_are_flops(tmp_path):
    assert scaling("fit", "chinchilla", written(tmp_path, simulated("chinchilla")), "--out", tmp_path / "f").code == 0
    words = ["plan", tmp_path / "f", "--json"]
    hours = scaling(*words, "--gpu-hours", "1000", "--flops-per-gpu-second", "4e14").json
    assert hours["optimum"] == scaling(*words, "--flops", "1.44e21").json["optimum"]


@pytest.mark.parametrize("parameters", [3e4, 1e6, 3e7, 1.5e8, 1.4e9, 7e9, 7e10])
@pytest.mark.parametrize(
    "context", [{}, {"config": {"model.vocab_size": 257, "model.qk_norm": False, "model.ffn": "gelu"}, "aspect": 16.0}]
)
def test_shapes_have_the_planned_parameters(parameters, context):
    if not context and parameters < 1e6:
        pytest.skip("a vocabulary of 32,768 alone is more")
    shape = shape_for(parameters, context)
    config = context.get("config", {})
    counted = ModelShape(
        **shape, head_dim=shape["hidden_size"] // shape["num_heads"], vocab_size=config.get("model.vocab_size", 32_768),
        ffn=config.get("model.ffn", "swiglu"), tie_embeddings=False, qk_norm=config.get("model.qk_norm", True),
    ).parameters  # fmt: skip
    assert counted == pytest.approx(parameters, rel=0.1)


def test_what_runs_had_in_common_comes_along_and_composes_to_the_same(tmp_path):
    import yaml

    base = [
        "data=files", f"data.files=[{tmp_path}/a b.txt]", 'data.document_separator="<|sep|> x"',
        "tokenizer=bytes", "model.vocab_size=300",
        "schedule=constant", "schedule.peak=3e-4", "model.ffn=gelu", "train.batch_tokens=8192",
        "optimizer.weight_decay=0.05", f"run.dir={tmp_path}",
    ]  # fmt: skip
    configs = []
    for number, size in enumerate((64, 128)):
        config = load_config(
            [*base, f"run.name=r{number}", f"model.hidden_size={size}", f"train.tokens={10**6 * (number + 1)}"]
        )
        (tmp_path / f"r{number}").mkdir()
        (tmp_path / f"r{number}" / "config.yaml").write_text(yaml.safe_dump(config.as_dict()))
        configs.append(config)
    context = common_context([str(tmp_path / "r0"), str(tmp_path / "r1")])
    words = words_for(context, 1e6, 5e6, name="next", learning_rate=1e-3)
    planned = load_config(words)
    require(planned, world_size=1)
    assert planned.data == configs[0].data
    assert planned.tokenizer == configs[0].tokenizer
    assert planned.optimizer == configs[0].optimizer
    assert (planned.schedule.name, planned.schedule.peak) == ("constant", 1e-3)
    assert (planned.train.batch_tokens, planned.model.ffn, planned.model.vocab_size) == (8192, "gelu", 300)
    assert planned.model.shape.parameters == pytest.approx(1e6, rel=0.1)
    # A default is not spelled out.
    assert not any(word.startswith(("health.", "parallel.", "optimizer.beta1", "model.rope_theta")) for word in words)


def test_a_short_run_warms_up_for_a_tenth_of_it():
    words = words_for({"config": {"model.vocab_size": 257}}, 1e5, 100_000, name="short")
    assert "schedule.warmup_tokens=10000" in words
