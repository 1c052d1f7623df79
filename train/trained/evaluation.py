"""The validation loss of a run's weights."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from parallel.mesh import World, build_meshes
from train.config import Config
from train.data.loader import ValidationLoader
from train.data.prepare import prepare
from train.data.shards import open_shards
from train.scoring.tasks import Task, score_task
from train.scoring.watch import Watch
from train.trained.scoring import open_scorer, score_documents
from train.trained.weights import ready_engine, weights_to_use


def score_files(
    run: Path, config: Config, world: World, texts: Iterable[str], *, quantize: str | None, per_document: bool
) -> dict[str, Any]:
    """Losses of a run's newest weights on texts of your own, in the form of `evaluate_run`, with "bits_per_character" and, on
    request, "documents". A collective.

    Raises:
        UserError: `run` has no weights, or they cannot be rounded; there is no text.
    """
    weights = weights_to_use(run, config, quantize)
    scores = score_documents(open_scorer(run, config, weights, world, _watch(world)), texts, per_document=per_document)
    return {**scores, "losses": {"files": scores["loss"]}, "errors": {}, "bits": weights.bits, "weights": str(weights)}


def score_tasks(run: Path, config: Config, world: World, tasks: Iterable[Task], *, quantize: str | None) -> dict[str, Any]:
    """{"errors": {task: 1 - accuracy}, "tasks": {task: its scores}} of a run's newest weights. A collective.

    Raises:
        UserError: `run` has no weights, or they cannot be rounded.
    """
    weights = weights_to_use(run, config, quantize)
    scorer = open_scorer(run, config, weights, world, _watch(world))
    scores = {task.name: score_task(scorer, task) for task in tasks}
    return {
        "losses": {},
        "errors": {name: 1.0 - score.accuracy for name, score in scores.items()},
        "tasks": {name: score.as_dict() for name, score in scores.items()},
        "bits": weights.bits,
        "weights": str(weights),
    }


def evaluate_run(run: Path, config: Config, world: World, quantize: str | None = None) -> dict[str, Any]:
    """Losses of a run's newest weights: {"loss":, "bits_per_byte":, "losses": {set:}, "errors": {task:}}, with a
    description of the weights: {"bits":, "weights": text}. A collective.

    `config` is the run's configuration on the current layout (see `evaluation_config`). The validation set is the run's,
    tokenised again if its shards no longer exist.

    Raises:
        UserError: `run` has no weights, or they cannot be rounded.
    """
    weights = weights_to_use(run, config, quantize)
    if world.rank == 0:
        world.publish("shards", str(prepare(config.data, config.tokenizer, progress=False).absolute()))
    shards = open_shards(Path(world.await_value("shards")))
    engine = ready_engine(weights, world)
    validation = ValidationLoader(shards.validation, config.train.sequence, config.eval.tokens)
    ranks, rank = config.parallel.layout.data_parallel, build_meshes(config.parallel.layout, world.device).data_rank
    batches = validation.share(rank, ranks, config.train.microbatch)
    if (watch := _watch(world)) is not None:
        batches = watch(batches, -(-validation.num_samples // (config.train.microbatch * ranks)))
    loss = engine.evaluate(batches)
    bits_per_byte = loss / math.log(2) * shards.validation.tokens / shards.validation.bytes
    return {
        "loss": loss,
        "bits_per_byte": bits_per_byte,
        "losses": {"validation": loss},
        "errors": {},
        "bits": weights.bits,
        "weights": str(weights),
    }


def _watch(world: World) -> Watch | None:
    """One process says how far all are."""
    return Watch() if world.rank == 0 else None
