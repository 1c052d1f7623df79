"""The loss in chunks against the plain one from whole logits, in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from parallel.batch import IGNORE
from tests.support import split_losses
from train.build.model import build_model
from train.build.quantization import learned_scales
from train.config import load_config
from train.model.initialize import fill
from train.model.loss import chunk_tokens, loss_sums


def plain(hidden_BSE, weight_VE, targets_BS, z_loss):
    """(objective, cross entropy, number of targets) from whole logits."""
    logits_TV = (hidden_BSE @ weight_VE.T).flatten(0, 1)
    targets_T = targets_BS.flatten()
    cross_entropy = F.cross_entropy(logits_TV, targets_T, ignore_index=IGNORE, reduction="sum")
    penalty = logits_TV.logsumexp(dim=1).square()[targets_T != IGNORE].sum()
    return cross_entropy + z_loss * penalty, cross_entropy, (targets_T != IGNORE).sum()


def gradients(objective, *tensors):
    return torch.autograd.grad(0.25 * objective, tensors)


def assert_close(ours, theirs, bound=1e-12):
    for one, other in zip(ours, theirs, strict=True):
        one, other = one.detach(), other.detach()
        assert (one - other).abs().max() <= bound * max(1.0, float(other.abs().max()))


@given(
    rows=st.integers(1, 3),
    sequence=st.integers(1, 9),
    vocabulary=st.integers(1, 11),
    chunk=st.integers(1, 30),
    ignored=st.sets(st.integers(0, 26)),
    z_loss=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 2**31),
)
def test_equals_the_plain_loss(rows, sequence, vocabulary, chunk, ignored, z_loss, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, sequence, 5, generator=generator, dtype=torch.float64).requires_grad_()
    weight = (3.0 * torch.randn(vocabulary, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(vocabulary, (rows * sequence,), generator=generator)
    targets[[number for number in ignored if number < targets.numel()]] = IGNORE
    targets = targets.view(rows, sequence)
    sums = loss_sums(hidden, weight, targets, z_loss=z_loss, chunk=chunk)
    expected = plain(hidden, weight, targets, z_loss)
    assert_close(sums, [value.double() for value in expected])
    assert_close(gradients(sums[0], hidden, weight), gradients(expected[0], hidden, weight))
    with torch.no_grad():
        assert torch.equal(loss_sums(hidden, weight, targets, z_loss=z_loss, chunk=chunk), sums)


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_split_vocabulary_gives_the_whole_ones_loss(group, ranks):
    hidden, weight, targets = split_losses.numbers(12)
    expected = plain(hidden.requires_grad_(), weight.requires_grad_(), targets, 0.1)
    hidden_gradient, weight_gradient = gradients(expected[0], hidden, weight)
    for rank, arrays in enumerate(group(ranks).run(split_losses.sums_and_gradients, 12, 0.1, 4)):
        sums, of_hidden, of_part = map(torch.from_numpy, arrays)
        assert_close(sums, [value.double() for value in expected])
        assert_close([of_hidden, of_part], [hidden_gradient, weight_gradient.chunk(ranks)[rank]])


VARIANTS = {
    "untied": ["model.tie_embeddings=false"],
    "tied": ["model.tie_embeddings=true"],
    "quantized": [
        "model.tie_embeddings=false",
        "quant=qat",
        "quant.bits=4",
        "quant.embedding_bits=4",
        "quant.activation_bits=8",
    ],
    "quantized_tied": ["model.tie_embeddings=true", "quant=qat", "quant.bits=2", "quant.embedding_bits=2"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_head_has_the_plain_gradient(variant):
    """Of all parameters, those of a quantized head's scales included."""
    config = load_config(
        ["model.num_layers=1", "model.hidden_size=24", "model.num_heads=4", "model.ffn_size=40", "model.vocab_size=61",
         "tokenizer=bytes", *VARIANTS[variant]]
    )  # fmt: skip
    model = build_model(config.model, torch.float64, torch.device("cpu"), z_loss=0.02)
    method = learned_scales(config.quant) if variant.startswith("quantized") else None
    if method is not None:
        method.convert(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fill(parameter, (0,) * parameter.dim(), parameter.shape, name=name, seed=3, std=0.3)
            if name.endswith(".scale"):
                parameter.fill_(0.1)
    for _, module in method.modules(model) if method is not None else ():
        module.active = True
    generator = torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(61, (2, 2, 40), generator=generator)
    targets[1, 30:] = IGNORE
    documents = torch.zeros_like(tokens)
    parameters = [parameter for _, parameter in model.named_parameters()]
    sums = model(tokens, documents, targets)
    ours = torch.autograd.grad(sums[0], parameters)
    expected = plain(model(tokens, documents), torch.eye(61, dtype=torch.float64), targets, 0.02)
    assert_close(sums, [value.double() for value in expected])
    assert_close(ours, torch.autograd.grad(expected[0], parameters))


def test_bf16_loses_no_more_digits_than_the_plain_loss():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 2048, 32, generator=generator).bfloat16()
    weight = (0.3 * torch.randn(100, 32, generator=generator)).bfloat16()
    targets = torch.randint(100, (1, 2048), generator=generator)

    def error(of, dtype):
        copies = [tensor.to(dtype).requires_grad_() for tensor in (hidden, weight)]
        exact = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
        ours = gradients(of(*copies), *copies)
        theirs = gradients(plain(*exact, targets, 0.0)[0], *exact)
        return [float((one.double() - other).norm() / other.norm()) for one, other in zip(ours, theirs, strict=True)]

    def of_plain(hidden, weight):
        logits_TV = (hidden @ weight.T).flatten(0, 1).float()
        return F.cross_entropy(logits_TV, targets.flatten(), reduction="sum")

    in_chunks = error(lambda hidden, weight: loss_sums(hidden, weight, targets, chunk=64)[0], torch.bfloat16)
    for ours, theirs in zip(in_chunks, error(of_plain, torch.bfloat16), strict=True):
        assert ours <= 1.1 * theirs + 2**-9


class _Largest(TorchDispatchMode):
    """Sees every result of an operator: how many elements the largest one has."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_no_tensor_is_larger_than_a_chunk_of_logits():
    tokens, vocabulary = 4096, 1000
    hidden, weight = torch.randn(1, tokens, 16).requires_grad_(), torch.randn(vocabulary, 16).requires_grad_()
    with _Largest() as largest:
        loss_sums(hidden, weight, torch.zeros(1, tokens, dtype=torch.int64), z_loss=0.1, chunk=128)[0].backward()
    assert largest.elements == 128 * vocabulary


def test_a_chunk_takes_no_more_than_hidden_states_or_a_constant():
    for tokens, hidden_size, vocabulary in ((8192, 1024, 128_256), (512, 64, 257), (32768, 4096, 128_256), (1, 8, 50_000)):
        chunk = chunk_tokens(torch.empty(tokens, hidden_size, device="meta"), vocabulary)
        assert 1 <= chunk <= tokens
        if chunk > 128:
            assert chunk * vocabulary * 4 <= max(tokens * hidden_size * 4, 512 * 2**20)


def test_it_is_differentiated_once():
    hidden, weight = torch.randn(1, 3, 4).requires_grad_(), torch.randn(5, 4).requires_grad_()
    sums = loss_sums(hidden, weight, torch.zeros(1, 3, dtype=torch.int64))
    sums[0].backward(retain_graph=True)
    with pytest.raises(AssertionError, match="once"):
        sums[0].backward()
