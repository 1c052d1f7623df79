"""`foretrain launch slurm` and `launch ladder --cluster`: from a request to queued jobs."""

import sys
from collections.abc import Sequence
from dataclasses import replace

from common.errors import UserError
from launch.forecast import Expected, checkpoint_seconds, expect
from launch.ladder.trunks import Job
from launch.slurm.cluster import Cluster
from launch.slurm.request import Shape, problems, require_partition, require_slurm, shape_of
from launch.slurm.submit import Batch, command_line, prepare, sbatch_words, script, submit
from parallel.plan.hardware import load_hardware
from train.config import Config, load_config, require


def run_slurm(words: Sequence[str], cluster: Cluster, *, dry_run: bool, preflight: bool, force: bool) -> None:
    """Check, forecast and queue one run.

    Raises:
        UserError: the request is inconsistent. WorkFailed: the scheduler refuses.
    """
    config = load_config(words)
    require(config, world_size=config.parallel.layout.world_size, overrides=words)
    shape, expected = checked(config, cluster, force=force)
    _announce(config, cluster, shape, expected)
    batch = Batch(config.run.name, (tuple(words),), config.run.dir, shape)
    if dry_run:
        print(script(batch, cluster, preflight=preflight), end="")
        return
    require_slurm()
    require_partition(cluster, shape)
    folder = prepare(batch, cluster, preflight=preflight)
    job = submit(folder, batch)
    print(f"job {job}: {command_line(sbatch_words(folder, batch))}")
    print(f"its log: {folder}/{job}.log    how it does: foretrain launch status {config.run.dir}    stop it: scancel {job}")


def checked(config: Config, cluster: Cluster, *, force: bool) -> tuple[Shape, Expected]:
    """The nodes of a run, and its forecast.

    Raises:
        UserError: it cannot work on this cluster.
    """
    shape = shape_of(config, cluster)
    expected = expect(config, load_hardware(cluster.hardware))
    found = list(problems(config, cluster, expected))
    if found and not force:
        raise UserError("\n".join(found))
    return shape, expected


def queue_ladder(jobs: Sequence[Job], cluster: Cluster, *, most_at_once: int, dry_run: bool, preflight: bool) -> None:
    """Queue a ladder: an array for every generation of trunks and of runs, and for every number of nodes.

    A job of an array waits until all jobs of the generation before have ended.

    Raises:
        UserError: a run is inconsistent with the cluster. WorkFailed: the scheduler refuses.
    """
    shapes = {job.folder: checked(job.config, cluster, force=False)[0] for job in jobs}
    todo = [job for job in jobs if not job.finished]
    if not todo:
        print("every run is finished")
        return
    if not dry_run:
        require_slurm()
        for shape in set(shapes.values()):
            require_partition(cluster, shape)
    before: tuple[str, ...] = ()
    for number, generation in enumerate(_generations(todo)):
        queued = []
        for shape in sorted({shapes[job.folder] for job in generation}, key=lambda shape: shape.nodes):
            members = [job for job in generation if shapes[job.folder] == shape]
            name = f"{'trunks' if members[0].is_trunk else 'ladder'}-{number}-{shape.nodes}x{shape.processes}"
            run_dir = todo[-1].config.run.dir
            batch = Batch(name, tuple(job.words for job in members), run_dir, shape, array=True, after=before)
            if dry_run:
                print(script(batch, cluster, preflight=preflight), end="")
                continue
            folder = prepare(batch, cluster, preflight=preflight)
            queued.append(submit(folder, batch, most_at_once))
            print(f"job {queued[-1]}: {command_line(sbatch_words(folder, replace(batch, after=before), most_at_once))}")
        before = tuple(queued)


def _generations(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs by how many unfinished trunks come before them."""
    depths: dict[object, int] = {}
    for job in jobs:  # a trunk comes before what needs it
        depths[job.folder] = depths.get(job.needs, -1) + 1
    return [[job for job in jobs if depths[job.folder] == depth] for depth in range(max(depths.values()) + 1)]


def _announce(config: Config, cluster: Cluster, shape: Shape, expected: Expected) -> None:
    money = "" if expected.dollars is None else f", ${expected.dollars:,.0f}"
    print(
        f"{config.run.name}: {shape.nodes} node{'s' * (shape.nodes > 1)} x {shape.processes} processes on {cluster.name}; "
        f"predicted {expected.memory_gib:,.2f} of {expected.capacity_gib:,.1f} GiB a device, a step of "
        f"{expected.step_seconds:.3g} s,\n  {expected.seconds / 3600:,.2f} h in all ({expected.device_hours:,.1f} device "
        f"hours{money}), {checkpoint_seconds(config, expected):,.0f} s between checkpoints, "
        f"{cluster.time} a job",
        file=sys.stderr,
    )
