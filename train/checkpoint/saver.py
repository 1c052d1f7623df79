"""Saving in the background: the loop waits for a copy in memory and for nothing else."""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from common.files import sync_folder
from train.checkpoint.manifest import ForGood, Manifest, Progress, folder_of, remove, retain
from train.checkpoint.storage import METADATA, Copies, copy_to_cpu, write_state
from train.checkpoint.verify import hash_files

log = logging.getLogger("foretrain")

PATIENCE_SECONDS = 2.0
"""How long the loop waits for the save before, when another is due: on a disk that is a little slow none is then left out."""

ManifestOf = Callable[[Progress, dict[str, tuple[int, str]]], Manifest]
"""The manifest of a checkpoint from where the run stands and its files."""


@dataclass(frozen=True)
class Saved:
    """What a save came to."""

    step: int
    bytes: int
    seconds: float
    """in the background, on rank 0"""
    cpu_seconds: float
    """of the background threads, all ranks together"""


class Saver:
    """Writes the checkpoints of a run, one at a time. Every rank has one and calls the same methods at the same steps.

    A save that fails (a full disk, a rank that does not answer in time) is taken back and told on the log; the run goes on
    with the checkpoints it has. A save that is due while the one before is under way waits for that a moment, and is then left
    out, which is told too.
    """

    def __init__(
        self,
        checkpoints: Path,
        manifest_of: ManifestOf,
        *,
        keep: int,
        for_good: ForGood,
        timeout_seconds: float,
    ) -> None:
        self.checkpoints = checkpoints
        self.manifest_of = manifest_of
        self.keep, self.for_good = keep, for_good
        self.timeout_seconds = timeout_seconds
        self.stall_seconds = 0.0
        """what the loop has waited for all saves together"""
        self.saved = 0
        """checkpoints that are complete"""
        self._last: Saved | None = None
        self._cpu_seconds = 0.0
        self._rank, self._size = dist.get_rank(), dist.get_world_size()
        self._group = self._new_group()
        self._buffers: dict[str, Tensor] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._in_flight: Future[Saved] | None = None
        self._out_of_step = False  # whether some rank gave up in the middle of the group's exchanges

    def save(self, state: Mapping[str, Tensor], progress: Progress) -> bool:
        """Begin to save. Returns whether it was begun: not while the save before is still being written."""
        start = time.perf_counter()
        if self._in_flight is not None:
            with suppress(FutureTimeoutError):
                self._in_flight.exception(timeout=PATIENCE_SECONDS)
        busy, _ = self._agree()
        if busy:
            self.stall_seconds += time.perf_counter() - start
            log.warning("step %d: the checkpoint before is still being written; this one is left out", progress.step)
            return False
        if self._out_of_step:
            self._group, self._out_of_step = self._new_group(), False
        copy_to_cpu(state, self._buffers)
        self._in_flight = self._thread.submit(self._write, dict(state), self._buffers, progress)
        self.stall_seconds += time.perf_counter() - start
        return True

    def finish(self) -> bool:
        """Wait for the save under way, as long as a save may take. Returns whether none was lost, on any rank."""
        if self._in_flight is not None:
            try:
                self._in_flight.exception(timeout=self.timeout_seconds)
            except FutureTimeoutError:
                log.warning("a checkpoint is not written after %.0f seconds; not waiting any longer", self.timeout_seconds)
        busy, broken = self._agree()
        return not busy and not broken

    def cost(self) -> dict[str, float]:
        """What saving has cost this process and its ranks, as the record has it."""
        if self._last is None:
            return {}
        return {
            "saved": self.saved,
            "bytes": self._last.bytes,
            "stall_seconds": self.stall_seconds,
            "cpu_seconds": self._cpu_seconds,
        }

    def close(self) -> None:
        """Let go of the thread; what it still writes does not count."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _agree(self) -> tuple[bool, bool]:
        """(whether any rank is still writing, whether the last save failed on any); a save that has ended is put away."""
        busy = self._in_flight is not None and not self._in_flight.done()
        ended = self._in_flight if not busy else None
        broken = ended is not None and ended.exception() is not None
        mine = [busy, broken]
        answers: list[list[bool]] = [mine] * self._size
        dist.all_gather_object(answers, mine)
        busy, broken = any(answer[0] for answer in answers), any(answer[1] for answer in answers)
        self._out_of_step |= broken
        if not busy:
            if ended is not None and not broken:
                self._last = ended.result()
                self.saved += 1
                self._cpu_seconds += self._last.cpu_seconds
            self._in_flight = None
        return busy, broken

    def _new_group(self) -> dist.ProcessGroup:
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=self.timeout_seconds))
        assert isinstance(group, dist.ProcessGroup)
        return group

    def _write(self, state: Mapping[str, Tensor], copies: Copies, progress: Progress) -> Saved:
        """In the background, on every rank."""
        folder = folder_of(self.checkpoints, progress.step)
        try:
            saved = self._write_all(folder, state, copies, progress)
        except BaseException as error:
            if self._rank == 0:
                remove(folder)
                log.warning("step %d: no checkpoint could be written: %s. Going on", progress.step, error)
            raise
        if self._rank == 0:
            log.debug(
                "step %d: checkpoint of %s bytes in %.2f s in the background (%.2f s of CPU)",
                progress.step,
                f"{saved.bytes:,}",
                saved.seconds,
                saved.cpu_seconds,
            )
        return saved

    def _write_all(self, folder: Path, state: Mapping[str, Tensor], copies: Copies, progress: Progress) -> Saved:
        start, cpu = time.perf_counter(), time.thread_time()
        self._on_rank_0(lambda: self._make_room(folder))  # the others may not begin before
        write_state(folder, state, copies, self._group)
        mine, error = self._hash_own(folder)
        gathered: list[tuple[dict[str, tuple[int, str]], str, float]] = [({}, "", 0.0)] * self._size
        dist.all_gather_object(gathered, (mine, error, time.thread_time() - cpu), group=self._group)
        problems = [problem for _, problem, _ in gathered if problem]
        if problems:
            raise OSError(problems[0])
        files = {name: entry for names, _, _ in gathered for name, entry in names.items()}
        self._on_rank_0(lambda: self._complete(folder, progress, files))
        total = sum(size for size, _ in files.values())
        cpu_seconds = sum(seconds for _, _, seconds in gathered)
        return Saved(progress.step, total, time.perf_counter() - start, cpu_seconds)

    def _on_rank_0(self, work: Callable[[], None]) -> None:
        """Do something on rank 0 while the others wait. A collective; raises OSError on all ranks where it fails."""
        outcome = [""]
        if self._rank == 0:
            try:
                work()
            except Exception as error:  # whatever it is, the others must not wait for it
                outcome = [str(error) or type(error).__name__]
        dist.broadcast_object_list(outcome, src=0, group=self._group)
        if outcome[0]:
            raise OSError(outcome[0])

    def _make_room(self, folder: Path) -> None:
        remove(folder)  # what a killed run left, or what turned out damaged
        folder.mkdir(parents=True)

    def _complete(self, folder: Path, progress: Progress, files: dict[str, tuple[int, str]]) -> None:
        sync_folder(folder)
        self.manifest_of(progress, files).write(folder)
        sync_folder(self.checkpoints)
        retain(self.checkpoints, keep=self.keep, for_good=self.for_good)

    def _hash_own(self, folder: Path) -> tuple[dict[str, tuple[int, str]], str]:
        """The files this rank wrote; rank 0 also has torch's metadata. What went wrong is told, not raised: others wait."""
        names = [path.name for path in folder.glob(f"__{self._rank}_*.distcp")]
        try:
            return hash_files(folder, [*names, METADATA] if self._rank == 0 else names), ""
        except Exception as error:  # whatever it is, the others must not wait for it
            return {}, f"rank {self._rank}: {error}"
