"""How ranks share a sequence, as a run's configuration has it. Imports no torch."""

from pathlib import Path

from parallel.context.choose import ASSUMED, AttentionCall, choose
from parallel.context.names import Method
from train.config.schema import Config

_GPU_DRIVERS = ("/proc/driver/nvidia/version", "/dev/kfd")  # NVIDIA's and AMD's on Linux: torch is not asked here


def context_method(config: Config) -> tuple[Method, str]:
    """What the ranks of a sequence exchange, and where that comes from, for people."""
    method = config.parallel.context_method
    return (method, f"parallel.context_method={method}") if method != "auto" else _choose(config)


def _choose(config: Config) -> tuple[Method, str]:
    """What `auto` comes to, and why: what the cost model expects of the heads that tensor parallelism leaves to a rank."""
    model, tensor, train = config.model, config.parallel.tensor, config.train
    call = AttentionCall(
        ranks=config.parallel.context,
        sequence=train.sequence,
        heads=max(1, model.num_heads // tensor),
        kv_heads=max(1, model.num_kv_heads // tensor),
        head_dim=model.head_dim,
        batch=train.microbatch,
        element_bytes={"bf16": 2, "fp32": 4, "fp64": 8}[train.precision],
    )
    device = "cuda" if any(Path(driver).exists() for driver in _GPU_DRIVERS) else "cpu"
    method, reason = choose(call, ASSUMED[device][config.parallel.context_topology])
    return method, f"auto, at assumed rates: {reason}"
