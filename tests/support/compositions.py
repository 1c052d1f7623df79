"""What a rank does in the tests of how a model is composed."""

from unittest import mock

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from parallel.batch import Batch
from parallel.context.local import Transfers
from parallel.mesh import World, build_meshes
from parallel.shard import shard_model
from parallel.tensor import split_tensors
from train.build.engine import build_engine
from train.build.model import build_model
from train.build.quantization import learned_scales
from train.config import Config, load_config, require
from train.config.sections.quantization import QatConfig
from train.loop.memory import LiveBytes


def local_sizes(world: World, configs: list[Config]) -> list[tuple[int, int]]:
    """For every model (elements this rank holds, those of its largest slice)."""
    found = []
    for config in configs:
        engine = build_engine(config, build_meshes(config.parallel.layout, world.device), world.device)
        sizes = [getattr(parameter, "_local_tensor", parameter).numel() for _, parameter in engine.named_parameters()]
        found.append((sum(sizes), max(sizes)))
    return found


def shard_before_tensor(world: World, overrides: list[str]) -> None:
    """Two steps of the composition, swapped."""
    config = load_config(overrides)
    meshes = build_meshes(config.parallel.layout, world.device)
    model = build_model(config.model, torch.float32, torch.device("meta"))
    shard_model(model, model.block_list(), meshes.parameters, bf16=False)
    split_tensors(model, model.tensor_roles(), meshes.parameters["tensor"])


def tensor_before_quantize(world: World, overrides: list[str]) -> tuple[int, int]:
    """How many matrices are not split where modules are swapped before the split, and where after it."""
    config = load_config(overrides)
    assert isinstance(config.quant, QatConfig)
    mesh = build_meshes(config.parallel.layout, world.device).parameters["tensor"]
    found = []
    for quantize_first in (True, False):
        model = build_model(config.model, torch.float32, torch.device("meta"))
        if quantize_first:
            learned_scales(config.quant).convert(model)
        split_tensors(model, model.tensor_roles(), mesh)
        if not quantize_first:
            learned_scales(config.quant).convert(model)
        matrices = [parameter for name, parameter in model.named_parameters() if "norm" not in name and "scale" not in name]
        found.append(sum(not isinstance(parameter, DTensor) for parameter in matrices))
    return found[0], found[1]


def peak_bytes_of_materialising(world: World, overrides: list[str], first: str) -> int:
    """Peak of live bytes where the model is materialised before or after it is sharded."""
    config = load_config(overrides)
    meshes = build_meshes(config.parallel.layout, world.device)
    model = build_model(config.model, torch.float32, torch.device("meta"))
    with LiveBytes([]) as live:
        if first == "materialise":
            model.to_empty(device=world.device)
        shard_model(model, model.block_list(), meshes.parameters, bf16=False)
        if first == "shard":
            model.to_empty(device=world.device)
        return live.peak


def dtypes_in_the_quantizer(world: World, overrides: list[str]) -> set[tuple[str, str]]:
    """(dtype of the weight, of the scale) as the forward pass of a composed model hands them over."""
    import quant.linear
    from train.build.model import COMPUTE_DTYPES
    from train.build.quantization import Quantization

    config = load_config(overrides)
    engine = build_engine(config, build_meshes(config.parallel.layout, world.device), world.device)
    Quantization(config, engine, COMPUTE_DTYPES[config.train.precision]).begin()
    seen, original = set(), quant.linear.fake_quantize

    def watched(weight, scale, *rest):
        seen.add((str(weight.dtype), str(scale.dtype)))
        return original(weight, scale, *rest)

    with mock.patch.object(quant.linear, "fake_quantize", watched):
        engine.next_token_logits(torch.zeros(config.train.sequence, dtype=torch.int64))
    return seen


def one_step(world: World, runs: list[list[str]], documents: list[int]) -> list[dict[str, float]]:
    """Of a training step of every run: its loss, its exchanges between context ranks, and its largest tensor's elements."""
    found = []
    for overrides in runs:
        config = load_config(overrides)
        require(config, world_size=world.size)
        engine = build_engine(config, build_meshes(config.parallel.layout, world.device), world.device)
        document_BS = torch.tensor(documents)[None]
        tokens_BS = torch.arange(len(documents))[None] % 256
        sizes = _LargestTensor()
        with mock.patch.object(Transfers, "post", autospec=True, side_effect=Transfers.post) as posted, sizes:
            batch = Batch(tokens_BS, tokens_BS, document_BS)
            loss = engine.train_step([batch], learning_rate=1e-3, tokens=len(documents)).loss
        found.append({"loss": float(loss), "exchanges": posted.call_count, "largest": sizes.elements})
    return found


class _LargestTensor(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return result
