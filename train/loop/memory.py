"""Peak of live tensor bytes on this rank."""

import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all live tensor storages that are made while it is active, and of the `existing` tensors.

    PyTorch's CPU allocator keeps no statistics, so this intercepts operators instead. It slows each down by some microseconds,
    so the trainer uses it for the first steps only. Storages resized in place, as FSDP does to free gathered parameters, count
    at their new size.
    """

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__()
        self.current = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._resize: Callable[..., Any] | None = None
        for tensor in existing:
            self._add(tensor)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch's compiler must be told to leave this mode alone, for which torch would import it: it never sees it."""
        return False

    def __enter__(self) -> "LiveBytes":
        original = torch.UntypedStorage.resize_
        self._resize = original

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            result = original(storage, size)
            self._update(storage)
            return result

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
        super().__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign, assignment]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return result

    def _add(self, tensor: Tensor) -> None:
        local = getattr(tensor, "_local_tensor", tensor)  # a DTensor owns no bytes but its local tensor's
        if local.device.type != "meta":
            self._update(local.untyped_storage())

    def _update(self, storage: torch.UntypedStorage) -> None:
        identity = storage._cdata
        if identity not in self._sizes:
            weakref.finalize(storage, self._forget, identity)
        self.current += storage.nbytes() - self._sizes.get(identity, 0)
        self._sizes[identity] = storage.nbytes()
        self.peak = max(self.peak, self.current)

    def _forget(self, identity: int) -> None:
        self.current -= self._sizes.pop(identity)


class PeakMemory:
    """This rank's peak of live tensor bytes: from the CUDA allocator on a GPU, from `LiveBytes` in the first steps on a CPU."""

    WATCHED_STEPS = 2  # the first step whose forward pass has optimizer state in memory is the second

    def __init__(self, device: torch.device, parameters: Iterable[Tensor], *, watch: bool) -> None:
        """`watch` False: do not measure on a CPU, because compiled code does not run under a dispatch mode."""
        self.device = device
        self._first = 0
        self._live = LiveBytes(parameters) if device.type == "cpu" and watch else None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def watching(self, step: int) -> AbstractContextManager[Any] | None:
        """The context to run step number `step` (from 0) in; None if the step is not watched."""
        return self._live if self._live is not None and 0 <= step - self._first < self.WATCHED_STEPS else None

    def watch_from(self, step: int) -> None:
        """Watch again from step number `step` on, because the tensors that a step needs have changed."""
        self._first = step

    def peak_bytes(self) -> int | None:
        """The peak so far, in bytes; None if it is not measured."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return self._live.peak if self._live is not None else None
