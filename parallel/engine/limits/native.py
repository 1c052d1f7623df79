"""The native engine carries out every layout; it has none of the other engines' own choices. Standard library only."""

from collections.abc import Iterator

from parallel.engine.limits.request import Request


def obstacles(request: Request) -> Iterator[str]:
    """A line for every key that only other engines know."""
    if request.zero_stage is not None:
        yield (
            f"parallel.zero_stage={request.zero_stage}: parallel.engine=native divides parameters, gradients and optimizer "
            f"state over parallel.shard, and nothing over parallel.replicate; leave parallel.zero_stage=null"
        )
    if request.offload != "none":
        yield f"parallel.offload={request.offload}: of the engines only deepspeed does that; type parallel.engine=deepspeed"
    if request.fused_optimizer:
        yield "parallel.fused_optimizer=true: parallel.engine=native has torch's, which is fused already; leave it false"
