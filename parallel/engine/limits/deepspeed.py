"""What DeepSpeed's ZeRO cannot do here. Standard library only."""

from collections.abc import Iterator

from parallel.engine.limits.request import Request, axes_of_one, library

DISTRIBUTION = "deepspeed"
OLDEST = (0, 19)

_AXES = {
    "replicate": "divides over all data ranks: type parallel.replicate=1 and raise parallel.shard",
    "tensor": "flattens whole parameters, and tensor ranks have parts: type parallel.tensor=1, or parallel.engine=native",
    "pipeline": "has ZeRO alone, whose pipelines would need another model: type parallel.pipeline=1, or parallel.engine=native",
}


def obstacles(request: Request) -> Iterator[str]:
    """A line for every reason why ZeRO cannot carry out a run."""
    yield from library("deepspeed", DISTRIBUTION, OLDEST, request)
    yield from axes_of_one("deepspeed", request, _AXES)
    yield from _numerics(request)
    if request.offload == "parameters" and request.zero_stage != 3:
        yield "parallel.offload=parameters: only parallel.zero_stage=3 divides parameters, and can keep them elsewhere"
    if request.zero_stage == 3 and request.recompute == "selective":
        yield (
            "parallel.recompute=selective with parallel.zero_stage=3: a block gathers its parameters again when it is "
            "recomputed, and the saved results do not fit; type parallel.recompute=full"
        )
    if request.compile:
        yield "train.compile=true: ZeRO's hooks on parameters break compiled blocks; type train.compile=false"


def _numerics(request: Request) -> Iterator[str]:
    if request.precision == "fp64":
        yield "train.precision=fp64: ZeRO's master weights are fp32; type train.precision=fp32, or parallel.engine=native"
    if request.optimizer == "muon":
        yield "optimizer=muon: ZeRO flattens matrices, which Muon needs whole; type optimizer=adamw"
    if request.quant not in ("none", "qat"):
        yield (
            f"quant={request.quant}: the penalty is on the mean of every matrix's bit widths, and ZeRO flattens all of them "
            f"together; type parallel.engine=native"
        )
    if request.quant == "qat" and request.precision == "bf16":
        yield (
            "quant=qat with train.precision=bf16: ZeRO would keep the scales in bf16, and they must be fp32; type "
            "train.precision=fp32, or parallel.engine=native"
        )
