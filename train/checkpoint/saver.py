"""Saving in the background: the training loop only waits for a copy in memory."""

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
from parallel.rectangles import Rectangles
from train.checkpoint.manifest import ForGood, Manifest, Progress, folder_of, remove, retain
from train.checkpoint.storage import METADATA, Copies, copy_to_cpu, write_state
from train.checkpoint.verify import hash_files

log = logging.getLogger("foretrain")

PATIENCE_SECONDS = 2.0
"""How long the loop waits for the previous save when the next is due, so that a slightly slow disk skips none."""

ManifestOf = Callable[[Progress, dict[str, tuple[int, str]]], Manifest]
"""(progress of the run, {file: (bytes, SHA-256)}) -> manifest of a checkpoint."""


@dataclass(frozen=True)
class Saved:
    """The cost of a completed save."""

    bytes: int
    """size of the checkpoint"""
    seconds: float
    """wall time in the background, on this rank"""
    cpu_seconds: float
    """CPU time of the background threads of all ranks"""


class Saver:
    """Writes the checkpoints of a run, one at a time. Every rank has one and calls the same methods at the same steps.

    If a save fails (a full disk, a rank that does not answer in time), its files are removed and the failure is logged; the run
    continues with its older checkpoints. If a save is due while the previous one is still running, it waits for
    `PATIENCE_SECONDS`, and is then skipped and logged.
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
        """time that the loop has waited for saves"""
        self.saved = 0
        """number of complete checkpoints"""
        self._last: Saved | None = None
        self._cpu_seconds = 0.0
        self._rank, self._size = dist.get_rank(), dist.get_world_size()
        self._group = self._new_group()
        self._buffers: dict[str, Tensor] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._in_flight: Future[Saved] | None = None
        self._out_of_step = False  # whether a rank failed between the group's collectives, so that the group is unusable

    def save(self, state: Mapping[str, Tensor | Rectangles], progress: Progress) -> bool:
        """Begin to save. Returns whether it has begun: it does not while the previous save is still running."""
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
        """Wait for the running save, at most `timeout_seconds`. Returns whether it succeeded on all ranks."""
        if self._in_flight is not None:
            try:
                self._in_flight.exception(timeout=self.timeout_seconds)
            except FutureTimeoutError:
                log.warning("a checkpoint is not written after %.0f seconds; not waiting any longer", self.timeout_seconds)
        busy, failed = self._agree()
        return not busy and not failed

    def cost(self) -> dict[str, float]:
        """The cost of all saves in this process, as the record stores it."""
        if self._last is None:
            return {}
        return {
            "saved": self.saved,
            "bytes": self._last.bytes,
            "stall_seconds": self.stall_seconds,
            "cpu_seconds": self._cpu_seconds,
        }

    def close(self) -> None:
        """Stop waiting for the thread. A save that is still running does not become complete."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _agree(self) -> tuple[bool, bool]:
        """(whether any rank is still writing, whether the save failed on any rank). Records a save that all have ended."""
        busy = self._in_flight is not None and not self._in_flight.done()
        ended = self._in_flight if not busy else None
        failed = ended is not None and ended.exception() is not None
        own_state = [busy, failed]
        states: list[list[bool]] = [own_state] * self._size
        dist.all_gather_object(states, own_state)
        busy, failed = any(state[0] for state in states), any(state[1] for state in states)
        self._out_of_step |= failed
        if not busy:
            if ended is not None and not failed:
                self._last = ended.result()
                self.saved += 1
                self._cpu_seconds += self._last.cpu_seconds
            self._in_flight = None
        return busy, failed

    def _new_group(self) -> dist.ProcessGroup:
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=self.timeout_seconds))
        assert isinstance(group, dist.ProcessGroup)
        return group

    def _write(self, state: Mapping[str, Tensor | Rectangles], copies: Copies, progress: Progress) -> Saved:
        """Write a checkpoint. Runs in the background, on every rank."""
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

    def _write_all(self, folder: Path, state: Mapping[str, Tensor | Rectangles], copies: Copies, progress: Progress) -> Saved:
        start, cpu = time.perf_counter(), time.thread_time()
        self._on_rank_0(lambda: self._make_folder(folder))  # before any rank writes
        write_state(folder, state, copies, self._group)
        own_files, error = self._hash_own(folder)
        gathered: list[tuple[dict[str, tuple[int, str]], str, float]] = [({}, "", 0.0)] * self._size
        dist.all_gather_object(gathered, (own_files, error, time.thread_time() - cpu), group=self._group)
        problems = [problem for _, problem, _ in gathered if problem]
        if problems:
            raise OSError(problems[0])
        files = {name: entry for rank_files, _, _ in gathered for name, entry in rank_files.items()}
        self._on_rank_0(lambda: self._complete(folder, progress, files))
        total = sum(size for size, _ in files.values())
        cpu_seconds = sum(seconds for _, _, seconds in gathered)
        return Saved(total, time.perf_counter() - start, cpu_seconds)

    def _on_rank_0(self, work: Callable[[], None]) -> None:
        """Do `work` on rank 0 while the others wait. A collective. Raises OSError on all ranks if it fails."""
        outcome = [""]
        if self._rank == 0:
            try:
                work()
            except Exception as error:  # sent to the other ranks, which wait for the broadcast
                outcome = [str(error) or type(error).__name__]
        dist.broadcast_object_list(outcome, src=0, group=self._group)
        if outcome[0]:
            raise OSError(outcome[0])

    def _make_folder(self, folder: Path) -> None:
        remove(folder)  # it may be incomplete or damaged, from an earlier process
        folder.mkdir(parents=True)

    def _complete(self, folder: Path, progress: Progress, files: dict[str, tuple[int, str]]) -> None:
        sync_folder(folder)
        self.manifest_of(progress, files).write(folder)
        sync_folder(self.checkpoints)
        retain(self.checkpoints, keep=self.keep, for_good=self.for_good)

    def _hash_own(self, folder: Path) -> tuple[dict[str, tuple[int, str]], str]:
        """({file: (bytes, SHA-256)} that this rank wrote, error); rank 0 adds torch's metadata. Never raises: others wait."""
        names = [path.name for path in folder.glob(f"__{self._rank}_*.distcp")]
        try:
            return hash_files(folder, [*names, METADATA] if self._rank == 0 else names), ""
        except Exception as error:
            return {}, f"rank {self._rank}: {error}"
