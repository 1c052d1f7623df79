"""The context-parallel method of a configuration. Imports no torch."""

from parallel.context.choose import ASSUMED, AttentionCall, choose
from parallel.context.names import Method
from train.config.resolve.gpus import gpu_names
from train.config.schema import Config


def context_method(config: Config) -> tuple[Method, str]:
    """The method by which ranks share a sequence, and a text that says why it was chosen."""
    method = config.parallel.context_method
    return (method, f"parallel.context_method={method}") if method != "auto" else _choose(config)


def _choose(config: Config) -> tuple[Method, str]:
    """What `auto` resolves to, and why: the method that the cost model expects to be fastest for one tensor rank's heads."""
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
    device = "cuda" if gpu_names(train.device) else "cpu"
    method, reason = choose(call, ASSUMED[device][config.parallel.context_topology])
    return method, f"auto, at assumed rates: {reason}"
