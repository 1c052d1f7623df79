"""The full-precision trunks that runs of a ladder share: what several runs would compute alike is trained once.

Up to its first decay and its low-precision phase, a run is the same as any other of its size, seed and peak. Those tokens
become trunks in `<run.dir>/.trunks/`, each going on where the one before ends, and every run goes on from the last one that it
is equal to. Schedules are functions of tokens alone, so it computes what it would have computed by itself.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from common.errors import UserError
from common.words import hydra_word
from launch.ladder.file import Wanted
from launch.state import run_folder, status_of
from train.config import Config, load_config, low_precision_phase, parse_config, require, schedule_of, with_defaults

FOLDER = ".trunks"
_OWN = ("quant", "schedule", "train.tokens", "train.steps", "run.name", "run.dir", "run.trunk")
"""overrides that say what a run does after its trunk, and where it lies"""
_KEPT = ("peak", "warmup_tokens", "warmup_shape", "warmup_start")
_MOST_PROBLEMS = 4


@dataclass(frozen=True)
class Job:
    """A run to be started: one of the ladder, or a trunk."""

    name: str
    words: tuple[str, ...]
    config: Config
    folder: Path
    is_trunk: bool = False
    needs: Path | None = None
    """the folder of the trunk that it goes on from"""
    trunk_tokens: int = 0

    @property
    def processes(self) -> int:
        """How many it needs."""
        return self.config.parallel.layout.world_size

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return status_of(self.folder) == "finished"


def jobs_of(runs: Sequence[Wanted], *, share: bool = True) -> list[Job]:
    """Every run and the trunks that they share, trunks first.

    Raises:
        UserError: a configuration is wrong, or a folder has another run of the same name.
    """
    configs = {run.name: _checked(run) for run in runs}
    trunks: dict[Path, Job] = {}
    origins: dict[str, Job] = {}
    if share:
        for members in _alike(runs, configs):
            origins |= _share(members, configs, trunks)
    jobs = [_job(run, configs[run.name], origins.get(run.name)) for run in runs]
    kept = {job.needs for job in jobs}
    for trunk in reversed(list(trunks.values())):  # a trunk that only another one needs
        kept |= {trunk.needs} if trunk.folder in kept else set()
    needed = [trunk for folder, trunk in trunks.items() if folder in kept]
    for job in (*needed, *jobs):
        _require_same(job)
    return [*needed, *jobs]


def _checked(run: Wanted) -> Config:
    try:
        config = load_config(run.words)
        require(config, world_size=config.parallel.layout.world_size, overrides=run.words)
    except UserError as error:
        lines = str(error).splitlines()
        raise UserError("\n".join([f"run {run.name}: {lines[0]}", *lines[1:_MOST_PROBLEMS]])) from None
    return config


def split(config: Config) -> int:
    """Tokens, in whole steps, up to which a run is only a warmup and a trunk in full precision."""
    schedule, phase = schedule_of(config), low_precision_phase(config)
    ends = [config.total_tokens, *(begin for begin, _ in schedule.decays), *([phase.start] if phase is not None else [])]
    end = config.batches.tokens(config.batches.steps(min(ends) + 1) - 1)
    return end if end > config.schedule.warmup_tokens and config.run.trunk is None else 0


def _alike(runs: Sequence[Wanted], configs: dict[str, Config]) -> list[list[tuple[Wanted, tuple[str, ...]]]]:
    """Runs with the same trunk, and its overrides."""
    groups: dict[str, list[tuple[Wanted, tuple[str, ...]]]] = {}
    for run in runs:
        if split(configs[run.name]):
            words = _trunk_words(run, configs[run.name])
            groups.setdefault("\n".join(words), []).append((run, words))
    return list(groups.values())


def _trunk_words(run: Wanted, config: Config) -> tuple[str, ...]:
    kept = [word for word in run.words if not word.lstrip("+").startswith(tuple(f"{key}{end}" for key in _OWN for end in "=."))]
    plain = config.as_dict()["schedule"]
    power = config.schedule.name == "power"
    keys = [*_KEPT, *(["a", "b"] if power else [])]
    schedule = [f"schedule.{key}={hydra_word(plain[key])}" for key in keys]
    return (*kept, f"schedule={'power' if power else 'constant'}", *schedule, *(["schedule.decay_fraction=0"] if power else []))


def _share(
    members: list[tuple[Wanted, tuple[str, ...]]], configs: dict[str, Config], trunks: dict[Path, Job]
) -> dict[str, Job]:
    """Add the trunks of runs that are alike. Returns the last one of every run that has any."""
    ends = {run.name: split(configs[run.name]) for run, _ in members}
    points = [point for point in sorted(set(ends.values())) if sum(end >= point for end in ends.values()) > 1]
    if not points:
        return {}
    words, first = members[0][1], configs[members[0][0].name]
    digest = hashlib.sha256("\n".join(words).encode()).hexdigest()[:8]
    chain: list[Job] = []
    for point in points:
        name = f"{first.model.num_layers}x{first.model.hidden_size}-{digest}-{point}"
        place = (*words, f"train.tokens={point}", "checkpoint.keep=1", f"run.dir={hydra_word(f'{first.run.dir}/{FOLDER}')}")
        wanted = Wanted(name, (*place, f"run.name={hydra_word(name)}"))
        trunk = _job(wanted, _checked(wanted), chain[-1] if chain else None, is_trunk=True)
        trunks[trunk.folder] = trunk
        chain.append(trunk)
    return {
        run.name: next(trunk for trunk in reversed(chain) if trunk.config.total_tokens <= ends[run.name])
        for run, _ in members
        if ends[run.name] >= points[0]
    }


def _job(run: Wanted, config: Config, origin: Job | None, *, is_trunk: bool = False) -> Job:
    """The job of a run that goes on from the end of `origin`. A run that has begun keeps the trunk that it began from."""
    folder = run_folder(config)
    begun = _begun(folder)
    checkpoint: str | None = None
    if begun is not None:
        checkpoint = begun.run.trunk
        if checkpoint is None or origin is None or not _is_end_of(checkpoint, origin):
            origin = None
    elif origin is not None:
        step = origin.config.batches.steps(origin.config.total_tokens)
        checkpoint = str((origin.folder / "checkpoints" / f"step_{step:08d}").resolve())
    words = (*run.words, *([f"run.trunk={hydra_word(checkpoint)}"] if checkpoint is not None else []))
    return Job(
        name=run.name,
        words=words,
        config=replace(config, run=replace(config.run, trunk=checkpoint)) if checkpoint is not None else config,
        folder=folder,
        is_trunk=is_trunk,
        needs=None if origin is None else origin.folder,
        trunk_tokens=0 if origin is None else origin.config.total_tokens,
    )


def _is_end_of(checkpoint: str, trunk: Job) -> bool:
    return Path(checkpoint).parent.parent == trunk.folder.resolve()


def _begun(folder: Path) -> Config | None:
    try:
        plain = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return parse_config(with_defaults(plain))
    except (OSError, UserError, yaml.YAMLError, AttributeError, TypeError):
        return None


def _require_same(job: Job) -> None:
    """Refuse a folder that has another run: what is finished there is not what was asked for."""
    begun = _begun(job.folder)
    if begun is not None and begun.identity_hash() != job.config.identity_hash():
        raise UserError(
            f"{job.folder} holds another run than the ladder's (foretrain train {' '.join(job.words[:3])} ... says what "
            "differs): change the name of the ladder, or run.dir"
        )
