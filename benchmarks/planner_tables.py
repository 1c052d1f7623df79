"""Published tables of training runs, as rows.

Narayanan et al., Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM (arXiv 2104.04473): table 1
(weak scaling) and table 2 (against ZeRO-3), A100 80 GB, sequence 2,048, vocabulary 51,200, full recomputation. TFLOP/s count
that recomputation: 96 B s L h^2 (1 + s/(6h) + V/(16 L h)) FLOPs a step (equation 3). Table 1 does not state micro-batches: the
planner's best of 1, 2, 4 and 8 is taken, and the schedule of stages (two a rank where layers divide) as the planner finds best.
"""

from parallel.plan.fit import speed
from parallel.plan.hardware import load_hardware
from parallel.plan.job import Choice, Job
from parallel.plan.recipe import load_recipe
from parallel.plan.rows import Row
from parallel.shape import ModelShape

# heads, hidden, layers, tensor, pipeline, devices, batch, TFLOP/s of a device
TABLE_1 = (
    (24, 2304, 24, 1, 1, 32, 512, 137),
    (32, 3072, 30, 2, 1, 64, 512, 138),
    (32, 4096, 36, 4, 1, 128, 512, 142),
    (48, 6144, 40, 8, 1, 256, 1024, 135),
    (64, 8192, 48, 8, 2, 512, 1536, 138),
    (80, 10240, 60, 8, 4, 1024, 1792, 140),
    (96, 12288, 80, 8, 8, 1536, 2304, 148),
    (128, 16384, 96, 8, 16, 1920, 2160, 155),
    (128, 20480, 105, 8, 35, 2520, 2520, 163),
    (160, 25600, 128, 8, 64, 3072, 3072, 163),
)
# heads, hidden, layers, model-parallel size, devices, batch, micro-batch, TFLOP/s
TABLE_2 = (
    (96, 12288, 96, 1, 384, 1536, 4, 144),
    (96, 12288, 96, 1, 768, 1536, 2, 88),
    (96, 12288, 96, 1, 1536, 1536, 1, 44),
    (128, 20480, 105, 1, 640, 2560, 4, 138),
    (128, 20480, 105, 1, 1120, 2240, 2, 98),
    (128, 20480, 105, 1, 2240, 2240, 1, 48),
    (96, 12288, 96, 96, 384, 1536, 1, 153),
    (96, 12288, 96, 96, 768, 1536, 1, 149),
    (96, 12288, 96, 96, 1536, 1536, 1, 141),
    (128, 20480, 105, 280, 560, 2240, 1, 171),
    (128, 20480, 105, 280, 1120, 2240, 1, 167),
    (128, 20480, 105, 280, 2240, 2240, 1, 159),
)
SEQUENCE, VOCABULARY = 2048, 51200


def flops_per_token(shape: ModelShape) -> float:
    """Narayanan's FLOPs with full recomputation (equation 3)."""
    layers, hidden = shape.num_layers, shape.hidden_size
    return 96 * layers * hidden**2 * (1 + SEQUENCE / (6 * hidden) + VOCABULARY / (16 * layers * hidden))


def _shape(heads: int, hidden: int, layers: int, words: int) -> ModelShape:
    return ModelShape(
        num_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        ffn_size=4 * hidden,
        vocab_size=words,
        ffn="gelu",
        tie_embeddings=True,
        qk_norm=False,
    )


def _row(name: str, sizes: tuple[int, int, int], batch: int, choice: Choice, tflops: float) -> Row:
    shape = _shape(*sizes, VOCABULARY)
    machine, recipe = load_hardware("a100-80g"), load_recipe("megatron-2021")
    job = Job(
        shape=shape,
        sequence=SEQUENCE,
        batch_sequences=batch,
        hardware=machine,
        recipe=recipe,
        choice=choice,
        constants=recipe.constants_for(machine.name),
    )
    return Row(name, "narayanan", job, True, tflops * 1e12 / flops_per_token(shape), None, {"tflops": str(tflops)})


def _choice(tensor: int, pipeline: int, devices: int, microbatch: int, virtual: int = 1, zero: int = 0) -> Choice:
    data = devices // (tensor * pipeline)
    return Choice(
        replicate=1 if zero else data,
        shard=data if zero else 1,
        tensor=tensor,
        pipeline=pipeline,
        microbatch=microbatch,
        recompute="full",
        pipeline_schedule="interleaved" if virtual > 1 else "1f1b",
        virtual_stages=virtual,
        zero=zero,
        sequence_parallel=False,
    )


def narayanan() -> list[Row]:
    """The rows of both tables."""
    rows = []
    for heads, hidden, layers, tensor, pipeline, devices, batch, tflops in TABLE_1:
        name = f"table 1: {hidden} x {layers}, tensor {tensor}, pipeline {pipeline}, {devices} devices"
        data = devices // (tensor * pipeline)
        options = [
            _row(name, (heads, hidden, layers), batch, _choice(tensor, pipeline, devices, microbatch, virtual), tflops)
            for microbatch in (1, 2, 4, 8)
            for virtual in ((1, 2) if pipeline > 1 and layers % (2 * pipeline) == 0 else (1,))
            if batch % (data * microbatch) == 0
        ]
        rows.append(max(options, key=lambda row: speed(row.job)))
    for heads, hidden, layers, model, devices, batch, microbatch, tflops in TABLE_2:
        kind = "ZeRO-3" if model == 1 else f"tensor 8, pipeline {model // 8}"
        name = f"table 2: {hidden} x {layers}, {kind}, {devices} devices"
        choice = _choice(1 if model == 1 else 8, max(1, model // 8), devices, microbatch, zero=3 if model == 1 else 0)
        rows.append(_row(name, (heads, hidden, layers), batch, choice, tflops))
    return rows


# Megatron-Core's README, H100, sequence 4,096, vocabulary 131,072, 48 data ranks: heads, hidden, layers, tensor, pipeline,
# devices, # batch, TFLOP/s. Its FLOPs are the model's, without recomputation. Micro-batches, stages and recomputation are not
# stated.
MEGATRON_CORE = (
    (16, 2048, 24, 1, 1, 48, 192, 408.8),
    (56, 7168, 48, 8, 1, 384, 192, 459.6),
    (96, 12288, 96, 8, 6, 2304, 1152, 432.8),
)


def megatron_core() -> list[Row]:
    """The rows of Megatron-Core's README, without recomputation, micro-batches and chunks of stages as the planner finds
    best."""
    rows = []
    machine, recipe = load_hardware("h100"), load_recipe("megatron")
    for heads, hidden, layers, tensor, pipeline, devices, batch, tflops in MEGATRON_CORE:
        shape = _shape(heads, hidden, layers, 131072)
        data = devices // (tensor * pipeline)
        jobs = [
            Job(
                shape=shape,
                sequence=4096,
                batch_sequences=batch,
                hardware=machine,
                recipe=recipe,
                constants=recipe.constants_for(machine.name),
                choice=Choice(
                    shard=data,
                    tensor=tensor,
                    pipeline=pipeline,
                    microbatch=microbatch,
                    pipeline_schedule="interleaved" if virtual > 1 else "1f1b",
                    virtual_stages=virtual,
                    zero=1,
                ),
            )
            for microbatch in (1, 2, 4)
            for virtual in ((1, 2, 4) if pipeline > 1 else (1,))
            if batch % (data * microbatch) == 0 and layers % (pipeline * virtual) == 0
        ]
        job = max(jobs, key=speed)
        flops = 72 * layers * hidden**2 * (1 + 4096 / (6 * hidden) + 131072 / (12 * layers * hidden))
        name = f"{hidden} x {layers}, tensor {tensor}, pipeline {pipeline}, {devices} H100"
        rows.append(Row(name, "megatron-core", job, True, tflops * 1e12 / flops, None, {"tflops": str(tflops)}))
    return rows
