"""The noise on weights: its integers, what it does to a weight, its gradients; the kernels of GPUs in Triton's interpreter."""

import os
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from quant.noise import compiled, in_numpy, rounded_normal
from quant.noise.add import add_noise
from quant.noise.draws import PROBABILITIES, noise_key, rounded_normal_by_key, uniform_by_key
from quant.noise.method import Noise, NoisyEmbedding, NoisyLinear, WeightNoise
from tests.support import noised_reference

IDEAL = {value: stats.norm.cdf(2 * value + 1) - stats.norm.cdf(2 * value - 1) for value in range(-2, 3)}


@cache
def drawn(step: int = 3, name: str = "blocks.0.ffn.up.weight", seed: int = 0) -> np.ndarray:
    return rounded_normal((2500, 4000), seed=seed, step=step, name=name).numpy()


def test_probabilities_are_fractions_near_the_ideal_ones():
    assert sum(PROBABILITIES.values()) == 1.0
    for value, probability in PROBABILITIES.items():
        assert (probability * 2**16).is_integer()
        assert abs(probability - IDEAL[value]) < 1e-4
    variance = sum(probability * value**2 for value, probability in PROBABILITIES.items())
    assert abs(variance - 0.3254) < 2e-4


@pytest.mark.parametrize("changed", [{}, {"step": 4}, {"step": 2**24 - 1}, {"name": "blocks.1.ffn.up.weight"}, {"seed": 1}])
def test_ten_million_draws_have_these_probabilities(changed):
    counts = np.bincount((drawn(**changed) + 2).ravel(), minlength=5)
    assert stats.chisquare(counts, [PROBABILITIES[value] * 1e7 for value in range(-2, 3)]).pvalue > 1e-4


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (drawn, lambda: drawn(step=4)),
        (drawn, lambda: drawn(name="blocks.1.ffn.up.weight")),
        (drawn, lambda: drawn(seed=1)),
        (lambda: drawn()[:, :-1], lambda: drawn()[:, 1:]),
        (lambda: drawn()[:, :-2], lambda: drawn()[:, 2:]),
        (lambda: drawn()[:, :-4], lambda: drawn()[:, 4:]),
        (lambda: drawn()[:-1], lambda: drawn()[1:]),
        (lambda: drawn()[:-1, :-1], lambda: drawn()[1:, 1:]),
        (lambda: drawn()[:2500, :2500], lambda: drawn()[:2500, :2500].T),
    ],
    ids=["step", "name", "seed", "column", "two columns", "four columns", "row", "diagonal", "transposed"],
)
def test_draws_are_independent_of_their_neighbours_in_every_direction(one, other):
    """Chi-square of the table of pairs, with +-2 counted as +-1: pairs of twos are too few."""
    first, second = (np.sign(values()).astype(np.int64) + 1 for values in (one, other))
    if first.shape == (2500, 2500):  # a pair and its transposed pair are the same
        upper = np.triu_indices(2500, 1)
        first, second = first[upper], second[upper]
    counts = np.bincount((3 * first + second).ravel(), minlength=9)
    three = np.array([PROBABILITIES[-2] + PROBABILITIES[-1], PROBABILITIES[0], PROBABILITIES[1] + PROBABILITIES[2]])
    assert stats.chisquare(counts, np.outer(three, three).ravel() * first.size).pvalue > 1e-4


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**24 - 1))
def test_a_slice_is_the_slice_of_the_whole(row, column, rows, columns, step):
    whole = rounded_normal((100, 100), seed=5, step=step, name="w")
    part = rounded_normal((rows, columns), seed=5, step=step, name="w", offset=(row, column))
    assert torch.equal(part, whole[row : row + rows, column : column + columns])


def test_draws_are_their_definition_also_far_out_in_a_large_matrix():
    for offset in ((0, 0), (2**20 - 8, 2**22 - 16)):
        found = rounded_normal((8, 16), seed=9, step=77, name="w", offset=offset)
        key = noised_reference.key_of(9, "w")
        for row in range(8):
            for column in range(16):
                draw = noised_reference.draw(key, 77, offset[0] + row, offset[1] + column)
                size = (abs(draw + 0.5) > 22371) + (abs(draw + 0.5) > 32680)
                assert found[row, column] == (size if draw >= 0 else -size)


def test_uniform_noise_is_symmetric_with_variance_a_twelfth():
    found = torch.from_numpy(uniform_by_key(noise_key(0, "w"), 1, (1000, 1000), (0, 0)))
    assert found.abs().max() < 0.5
    assert abs(found.mean()) < 4 * 12**-0.5 / 1e3
    assert abs(found.var() * 12 - 1) < 5e-3


@pytest.mark.parametrize(("bits", "least", "most"), [(4, 1, 1), (8, 1, 1), (9, 0.99, 1), (10, 0, 0.01), (11, 0, 0)])
def test_noise_survives_a_bf16_addition_up_to_nine_bits(bits, least, most):
    """On elements as large as the largest of their block, where R is +-1. A step of 9 bits is there half of bf16's spacing or
    more, and is lost where the element is a power of two."""
    generator = torch.Generator().manual_seed(0)
    largest = (1 + torch.rand(250, 100, generator=generator)).repeat_interleave(4, 0).repeat_interleave(4, 1)
    weight = (largest * torch.randn(1000, 400, generator=generator).sign()).bfloat16()
    widths, key, step = torch.full((250, 100), float(bits)), torch.tensor(7), torch.tensor(1)
    noised = add_noise(weight, widths, key, step, (0, 0), 4, uniform=False)
    drawn = torch.from_numpy(rounded_normal_by_key(7, 1, (1000, 400), (0, 0)))
    assert noised.dtype == torch.bfloat16
    assert torch.equal(noised[drawn == 0], weight[drawn == 0])
    survived = (noised != weight)[drawn.abs() == 1].float().mean().item()
    assert least <= survived <= most


@pytest.mark.parametrize("uniform", [False, True])
def test_values_and_gradients_are_the_formula_s(uniform):
    weight = torch.randn(24, 16, dtype=torch.float64, requires_grad=True)
    bits = (3 + 2 * torch.rand(3, 2, dtype=torch.float64)).requires_grad_()
    key, offset = torch.tensor(noise_key(1, "w") - 2**64 if noise_key(1, "w") >= 2**63 else noise_key(1, "w")), (8, 24)
    found = add_noise(weight, bits, key, torch.tensor(6), offset, 8, uniform=uniform)
    whole = noised_reference.noise(1, 6, "w", (32, 40), uniform)
    noise = whole[8:, 24:]
    blocks = weight.detach().abs().reshape(3, 8, 2, 8).amax((1, 3))
    size = (blocks * 2 ** (1 - bits)).repeat_interleave(8, 0).repeat_interleave(8, 1)
    torch.testing.assert_close(found, weight + noise * size, rtol=1e-14, atol=0)
    upstream = torch.randn_like(found)
    found.backward(upstream)
    assert torch.equal(weight.grad, upstream)
    sums = (upstream * noise).reshape(3, 8, 2, 8).sum((1, 3))
    torch.testing.assert_close(bits.grad, (-np.log(2) * blocks * 2 ** (1 - bits) * sums).detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize(("rows", "columns", "block"), [(4, 3, 32), (1, 1, 4), (70, 5, 8)])
def test_compiled_or_in_numpy_the_noise_is_the_same(dtype, uniform, rows, columns, block):
    functions = compiled.library(dtype)
    if functions is None:
        pytest.skip("there is no C compiler")
    weight, gradient = (torch.randn(rows * block, columns * block, dtype=dtype) for _ in range(2))
    bits = 3 + 3 * torch.rand(rows, columns, dtype=dtype)
    where = (2**64 - 5, 2**24 - 1, 3 * block, 5 * block, rows, columns, block, uniform)
    ones = torch.ones_like(bits)  # steps are then the largest weights, and no library's exp2 rounds
    theirs, ours = in_numpy.add(where, weight, ones), compiled.add(functions, compiled.Place(*where), weight, ones)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-13, "atol": 1e-13}
    theirs, ours = in_numpy.add(where, weight, bits), compiled.add(functions, compiled.Place(*where), weight, bits)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **close)
    sums = compiled.bits_gradient(functions, compiled.Place(*where), gradient, theirs[1])
    torch.testing.assert_close(sums, in_numpy.bits_gradient(where, gradient, theirs[1]), **close)


def test_without_a_compiler_there_is_numpy(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", str(tmp_path / "missing"))
    compiled.library.cache_clear()
    try:
        assert compiled.library(torch.float32) is None
        assert list((tmp_path / "foretrain").iterdir()) == []
        weight, place = torch.randn(8, 8), (torch.tensor(1), torch.tensor(2), (0, 0), 4)
        found = add_noise(weight, torch.full((2, 2), 4.0), *place, uniform=False)
    finally:
        compiled.library.cache_clear()
    noise = torch.from_numpy(rounded_normal_by_key(1, 2, (8, 8), (0, 0)))
    assert torch.equal(found != weight, noise != 0)


def noisy(model: nn.Module, **settings) -> WeightNoise:
    noise = Noise(**{"distribution": "rounded_normal", "b_init": 6.0, "b_target": 4.0, "block": 8} | settings)
    method = WeightNoise(noise=noise, penalty=0.1, bits_learning_rate=1.0)
    method.convert(model)
    for name, module in method.modules(model):
        with torch.no_grad():
            module.bits.copy_(method.first_value(f"{name}.bits", module.weight))
    return method


def test_an_inactive_module_and_an_evaluated_one_are_the_old_ones_to_the_bit():
    plain = nn.ModuleDict({"up": nn.Linear(16, 8, bias=False), "table": nn.Embedding(24, 16)})
    model = nn.ModuleDict({"up": nn.Linear(16, 8, bias=False), "table": nn.Embedding(24, 16)})
    model.load_state_dict(plain.state_dict())
    weights = model.state_dict()
    method = noisy(model)
    model.load_state_dict(weights, strict=False)
    assert isinstance(model["up"], NoisyLinear)
    assert isinstance(model["table"], NoisyEmbedding)
    ids = torch.arange(24)
    expected = plain["up"](plain["table"](ids))
    assert torch.equal(model["up"](model["table"](ids)), expected)
    for _, module in method.modules(model):
        module.active = True
    method.prepare_step(method.modules(model), seed=0, step=0)
    assert not torch.equal(model["up"](model["table"](ids)), expected)
    assert torch.equal(model.eval()["up"](model["table"](ids)), expected)


def test_a_step_s_noise_is_one_and_the_next_step_s_another():
    model = nn.ModuleDict({"up": nn.Linear(16, 8, bias=False)})
    method = noisy(model)
    model["up"].active = True
    used = []
    for step in (0, 0, 1):
        method.prepare_step(method.modules(model), seed=0, step=step)
        used.append(model["up"].used_weight())
    assert torch.equal(used[0], used[1])
    assert not torch.equal(used[0], used[2])


def test_what_a_noised_linear_keeps_is_its_bf16_weight():
    """Two bytes per parameter above the linear alone, and a number per block."""
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    sizes = []
    for active in (False, True):
        model = nn.ModuleDict({"up": nn.Linear(256, 512, bias=False, dtype=torch.bfloat16)})
        method = noisy(model, block=32)
        model["up"].active = active
        method.prepare_step(method.modules(model), seed=0, step=0)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model["up"](torch.ones(4, 256, dtype=torch.bfloat16, requires_grad=True)).sum()
        sizes.append(sum(size for place, size in kept.items() if place != model["up"].weight.data_ptr()))
    blocks = 256 * 512 // 1024
    assert 2 * 256 * 512 <= sizes[1] - sizes[0] <= 2 * 256 * 512 + 8 * blocks + 100


def test_compiled_code_is_compiled_once_for_all_steps():
    model = nn.ModuleDict({"up": nn.Linear(16, 8, bias=False)})
    method = noisy(model)
    model["up"].active = True
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model["up"].forward, backend=backend, fullgraph=True)
    for step in range(4):
        method.prepare_step(method.modules(model), seed=0, step=step)
        ones = torch.ones(2, 16)
        assert torch.equal(compiled(ones), model["up"](ones))
    assert len(graphs) == 1


INTERPRETED = """
import torch
from quant.noise import kernels, rounded_normal
from quant.noise.add import add_noise
from quant.noise.draws import noise_key

cpu = torch.device("cpu")
for name, step, shape, offset in (("a", 0, (70, 90), (33, 21)), ("blocks.7.b", 2**24 - 1, (8, 16), (2**20 - 8, 2**22 - 16))):
    expected = rounded_normal(shape, seed=3, step=step, name=name, offset=offset)
    assert torch.equal(kernels.rounded_normal_on_gpu(noise_key(3, name), step, shape, offset, cpu), expected)
key, step = kernels.signed(noise_key(3, "a"), cpu), torch.tensor(9)
for dtype in (torch.float32, torch.float64):
    for uniform in (False, True):
        for block in (8, 32):
            place = (key, step, 64, 32, block, uniform)
            weight, gradient = torch.randn(64, 96, dtype=dtype), torch.randn(64, 96, dtype=dtype)
            bits = 3 + 3 * torch.rand(64 // block, 96 // block, dtype=dtype)
            noised, size = torch.ops.foretrain_noise.add(weight, bits, *place)
            ours, our_size = kernels.add(weight, bits, *place)
            tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-14, "atol": 1e-14}
            torch.testing.assert_close(ours, noised, **tolerance)
            torch.testing.assert_close(our_size, size, **tolerance)
            sums = torch.ops.foretrain_noise.bits_gradient(gradient, size, *place)
            torch.testing.assert_close(kernels.bits_gradient(gradient, size, *place), sums, rtol=1e-4, atol=1e-5)
print("equal")
"""


def test_the_gpu_s_kernels_draw_the_same_integers_in_triton_s_interpreter():
    pytest.importorskip("triton", reason="triton is not installed, so its interpreter is not here")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, "equal"), done.stderr


COMPILED = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from quant.noise import kernels

def compiled(kernel, pointers, integers, **constants):
    signature = pointers | dict.fromkeys(integers, "i32") | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature={name: signature[name] for name in kernel.arg_names}, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]

places = ("columns", "first_row", "first_column")
drawn = {"key": "*i64", "step": "*i64"}
compiled(kernels._draw_kernel, drawn | {"out": "*i8"}, ("rows", *places), BLOCK=32)
for uniform in (False, True):
    constants = {"WIDE": tl.float32, "BLOCK": 32, "UNIFORM": uniform}
    added = drawn | {"weight": "*bf16", "bits": "*fp32", "noised": "*bf16", "size": "*fp32"}
    compiled(kernels._add_kernel, added, places, **constants)
    compiled(kernels._sum_kernel, drawn | {"gradient": "*bf16", "size": "*fp32", "out": "*fp32"}, places, **constants)
print("compiled")
"""


def test_the_gpu_s_kernels_compile_for_a_gpu_that_is_not_here():
    pytest.importorskip("triton", reason="triton is not installed")
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, "compiled"), done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_draws_what_a_cpu_draws():
    words = {"seed": 3, "step": 11, "name": "w", "offset": (5, 7)}
    assert torch.equal(rounded_normal((300, 500), device="cuda", **words).cpu(), rounded_normal((300, 500), **words))
