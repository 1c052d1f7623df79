"""What the engine of a run cannot do: every engine says so itself."""

from collections.abc import Iterator

from parallel.engine.limits import obstacles
from parallel.engine.limits.request import Request
from train.config.schema import Config
from train.config.sections.quantization import QatConfig


def engine_rules(config: Config) -> Iterator[str]:
    """A line for every reason why the engine cannot carry the run out."""
    parallel, train = config.parallel, config.train
    request = Request(
        here=not train.dry_run,
        layout=parallel.layout,
        shape=config.model.shape,
        pipeline_schedule=parallel.pipeline_schedule,
        virtual_stages=parallel.virtual_stages,
        recompute=parallel.recompute,
        zero_stage=parallel.zero_stage,
        offload=parallel.offload,
        fused_optimizer=parallel.fused_optimizer,
        precision=train.precision,
        compile=train.compile,
        z_loss=train.z_loss,
        optimizer=config.optimizer.name,
        mup=config.mup_width is not None,
        scaled_rope=config.model.rope_factor != 1.0,
        quant=config.quant.name,
        rounds_inputs=isinstance(config.quant, QatConfig) and bool(config.quant.activation_bits),
        growing_batch=train.batch_warmup_start is not None,
        accumulation=config.accumulation,
    )
    yield from obstacles(parallel.engine, request)
