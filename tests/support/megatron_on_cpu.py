"""What lets Megatron-Core run on a CPU in tests, and nowhere else: it asks CUDA for a device, streams and random states.

Everything that is asked of the GPU is answered for the CPU; nothing of what is computed changes.
"""

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

from parallel.engine.limits import megatron as limits
from parallel.mesh import World
from tests.support import whole_runs
from train.config import Config

CPU = torch.device("cpu")


class _OnCpu(TorchFunctionMode):
    """`device="cuda"` means the CPU, and tensors there say that they are CUDA's where Megatron-Core asserts it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = CPU
        if function is torch.Tensor.cuda:
            return args[0]
        result = function(*args, **kwargs)
        if function is torch.Tensor.type and isinstance(result, str):
            return result.replace("torch.", "torch.cuda.", 1)
        return result


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Megatron-Core runs on the CPU."""
    from megatron.core.tensor_parallel import random

    generator = torch.Generator()  # stands for the GPU's; nothing of our models draws from it
    answers = {
        (torch.cuda, "current_device"): lambda: CPU,
        (torch.cuda, "synchronize"): lambda *device: None,
        (torch.cuda, "get_rng_state"): lambda *device: generator.get_state(),
        (torch.cuda, "manual_seed"): generator.manual_seed,
        (random, "_get_cuda_rng_state"): lambda *device, **keywords: generator.get_state(),
        (random, "_set_cuda_rng_state"): lambda state, *device, **keywords: generator.set_state(state),
        (limits, "has_gpu"): lambda: True,
    }
    with contextlib.ExitStack() as stack:
        for (module, name), answer in answers.items():
            stack.enter_context(mock.patch.object(module, name, answer))
        stack.enter_context(_OnCpu())
        yield


def train(world: World, configs: list[Config]) -> list[list[tuple[float, float]]] | None:
    """`whole_runs.train` with Megatron-Core on the CPU."""
    with on_cpu():
        return whole_runs.train(world, configs)


def stop_and_go(world: World, runs: list[tuple[Config, int | None]]) -> list[list[dict[str, object]] | None]:
    """`whole_runs.stop_and_go` with Megatron-Core on the CPU."""
    with on_cpu():
        return whole_runs.stop_and_go(world, runs)
