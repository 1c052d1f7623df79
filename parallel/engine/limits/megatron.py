"""What Megatron-Core cannot do here. Standard library only."""

from collections.abc import Iterator
from pathlib import Path

from parallel.engine.limits.request import Request, axes_of_one, library

DISTRIBUTION = "megatron-core"
OLDEST = (0, 16)

_AXES = {
    "context": "needs TransformerEngine's attention for that, which does not see our documents: type parallel.context=1, or "
    "parallel.engine=native",
    "replicate": "has one data axis: type parallel.replicate=1 and raise parallel.shard",
}


def obstacles(request: Request) -> Iterator[str]:
    """A line for every reason why Megatron-Core cannot carry out a run."""
    yield from library("megatron", DISTRIBUTION, OLDEST, request)
    if request.here and not has_gpu():
        yield "parallel.engine=megatron needs a GPU, and this machine has none: type parallel.engine=native"
    yield from axes_of_one("megatron", request, _AXES)
    yield from _pipeline(request)
    yield from _keys(request)
    yield from _model(request)


def has_gpu() -> bool:
    """Whether a driver of NVIDIA's or AMD's GPUs shows a device."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()


def _pipeline(request: Request) -> Iterator[str]:
    ranks, schedule, layers = request.layout.pipeline, request.pipeline_schedule, request.shape.num_layers
    if ranks == 1:
        return
    if schedule not in ("1f1b", "interleaved"):
        yield f"parallel.pipeline_schedule={schedule}: Megatron-Core has 1f1b and interleaved"
        return
    chunks = request.virtual_stages if schedule == "interleaved" else 1
    if layers % (ranks * chunks):
        yield (
            f"model.num_layers={layers} is not divisible by {ranks * chunks} stages, as Megatron-Core needs: change "
            f"parallel.pipeline, or parallel.virtual_stages"
        )


def _keys(request: Request) -> Iterator[str]:
    if request.zero_stage not in (None, 1):
        yield f"parallel.zero_stage={request.zero_stage}: Megatron-Core divides optimizer state alone; type 1, or null for none"
    if request.offload != "none":
        yield f"parallel.offload={request.offload}: not with parallel.engine=megatron; type none, or parallel.engine=deepspeed"
    if request.fused_optimizer:
        yield "parallel.fused_optimizer=true: parallel.engine=megatron takes torch's AdamW, which is fused; leave it false"
    if request.compile:
        yield "train.compile=true: Megatron-Core's layers are not compiled; type train.compile=false"
    if request.recompute == "selective":
        yield "parallel.recompute=selective: Megatron-Core would recompute attention alone, ours keeps it; type none or full"


def _model(request: Request) -> Iterator[str]:
    if request.precision == "fp64":
        yield "train.precision=fp64: Megatron-Core trains in fp32 or bf16; type train.precision=fp32, or parallel.engine=native"
    if request.optimizer == "muon":
        yield "optimizer=muon: Megatron-Core's matrices are fused, and Muon needs each by itself; type optimizer=adamw"
    if request.mup:
        yield "optimizer.mup=true: Megatron-Core's layers have no multipliers; type parallel.engine=native"
    if request.scaled_rope:
        yield "model.rope_factor: Megatron-Core's frequencies are not scaled here; type parallel.engine=native"
    if request.shape.qkv_bias:
        yield "model.qkv_bias=true: Megatron-Core's fused matrix has none of ours here; type parallel.engine=native"
    if request.z_loss:
        yield f"train.z_loss={request.z_loss}: Megatron-Core's cross entropy has no such term; type train.z_loss=0"
    if request.quant != "none":
        yield (
            f"quant={request.quant}: Megatron-Core fuses query, key and value, gate and up into one matrix, whose scales and "
            f"blocks would not be ours; type parallel.engine=native"
        )
