"""`train.profile=true`: a trace of three steps with named regions, for chrome://tracing or Perfetto."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

WAIT, WARMUP, ACTIVE = 2, 1, 3


@contextmanager
def traced(folder: Path | None, rank: int) -> Iterator[Callable[[], None]]:
    """Call the result after every step. With a `folder`, a trace of steps 4 to 6 is written to `<folder>/rank_0000.json`."""
    if folder is None:
        yield lambda: None
        return

    def write(finished: profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        finished.export_chrome_trace(str(folder / f"rank_{rank:04d}.json"))

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    steps = schedule(wait=WAIT, warmup=WARMUP, active=ACTIVE, repeat=1)
    with profile(activities=activities, schedule=steps, on_trace_ready=write) as profiler:
        yield profiler.step
