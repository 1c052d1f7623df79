"""The validation loss of a run's weights."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from parallel.mesh import World, build_meshes
from train.config import Config
from train.data.loader import ValidationLoader
from train.data.prepare import prepare
from train.data.sets import open_sets, prepare_sets
from train.data.shards import Shards, open_shards
from train.scoring.built_in import make_tasks, task_files
from train.scoring.tasks import read_tasks, score_task
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


def score_tasks(run: Path, config: Config, world: World, names: Sequence[str], *, quantize: str | None) -> dict[str, Any]:
    """{"errors": {task: 1 - accuracy}, "tasks": {task: its scores}} of a run's newest weights. A collective.

    `names`: as in `eval.tasks`. Built-in tasks are made from the run's held-out text, which is tokenised again if its shards no
    longer exist.

    Raises:
        UserError: `run` has no weights, they cannot be rounded, or there is no such task.
    """
    weights = weights_to_use(run, config, quantize)
    built_in = len(task_files(names)) < len(names)
    tasks = make_tasks(names, _shards(config, world)) if built_in else read_tasks(names)
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
    """Losses of a run's newest weights: {"loss":, "bits_per_byte":, "losses": {set:}, "set_bits_per_byte": {set:},
    "errors": {task:}}, with a description of the weights: {"bits":, "weights": text}. A collective.

    `config` is the run's configuration on the current layout (see `evaluation_config`). The validation sets are the run's,
    tokenised again if their shards no longer exist.

    Raises:
        UserError: `run` has no weights, or they cannot be rounded.
    """
    weights = weights_to_use(run, config, quantize)
    shards = _shards(config, world)
    engine = ready_engine(weights, world)
    ranks, rank = config.parallel.layout.data_parallel, build_meshes(config.parallel.layout, world.device).data_rank
    streams = {"validation": shards.validation, **shards.sets}
    losses = {}
    for name, stream in streams.items():
        windows = ValidationLoader(stream, config.train.sequence, config.eval.tokens)
        batches = windows.share(rank, ranks, config.train.microbatch)
        if (watch := _watch(world)) is not None:
            batches = watch(batches, -(-windows.num_samples // (config.train.microbatch * ranks)))
        losses[name] = engine.evaluate(batches)
    bits_per_byte = {name: stream.bits_per_byte(losses[name]) for name, stream in streams.items()}
    return {
        "loss": losses["validation"],
        "bits_per_byte": bits_per_byte["validation"],
        "losses": losses,
        "set_bits_per_byte": bits_per_byte,
        "errors": {},
        "bits": weights.bits,
        "weights": str(weights),
    }


def _watch(world: World) -> Watch | None:
    """One process says how far all are."""
    return Watch() if world.rank == 0 else None


def _shards(config: Config, world: World) -> Shards:
    """The tokens of the run's corpus and sets, which rank 0 prepares. A collective."""
    if world.rank == 0:
        folder = prepare(config.data, config.tokenizer, progress=False)
        sets = open_sets(config.eval.sets, config.data)
        folders = {"": folder, **prepare_sets(sets, config.data, open_shards(folder), progress=False)}
        world.publish("shards", json.dumps({name: str(path.absolute()) for name, path in folders.items()}))
    opened = {name: Path(path) for name, path in json.loads(world.await_value("shards")).items()}
    return open_shards(opened.pop(""), opened)
