"""The process of a preflight: `launch.preflight.worker RUN_DIR LEAST_DISK_GIB LEAST_GB_PER_SECOND table|json`."""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from launch.preflight.judge import judge
from launch.preflight.measure import measure
from launch.preflight.table import show
from parallel.environment import ProcessEnvironment, die_with_launcher, leave
from parallel.mesh import connect


def main(words: list[str]) -> int:
    """Measure, compare, and say it on rank 0. Returns 0 on every rank if all is well, else 1."""
    run_dir, least_disk, least_link, form = words
    environment = ProcessEnvironment.read()
    if environment.by_foretrain:
        die_with_launcher()
    with connect(environment) as world:
        reports: list[dict] = [{} for _ in range(world.size)]  # type: ignore[type-arg]
        dist.all_gather_object(reports, measure(world, Path(run_dir).expanduser()))
        link = float(least_link) * 1e9 or None
        problems = judge(reports, least_disk_bytes=float(least_disk) * 2**30, least_link=link)
        if world.rank == 0 and form == "json":
            print(json.dumps({"fit": not problems, "problems": problems, "processes": reports}, indent=2))
        elif world.rank == 0:
            show(reports, problems)
    return int(bool(problems))


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
