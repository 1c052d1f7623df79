"""The final weights of a run: one safetensors file and a manifest that is written last.

`<run>/checkpoints/step_00000184/{model.safetensors, manifest.json}`. A folder without a manifest does not count.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from parallel.compose import Fill
from scaling.record import write_atomically
from train.errors import UserError


def save_weights(parameters: Iterator[tuple[str, Tensor]], run: Path | None, *, step: int, tokens: int) -> None:
    """Gather every parameter (a collective over `parameters`) and, on the rank that has a run folder, write them.

    Raises:
        OSError: the disk refused; nothing that counts is left behind.
    """
    whole = {}
    for name, tensor in parameters:
        if run is not None:
            whole[name] = tensor.contiguous()
    if run is None:
        return
    folder = run / "checkpoints" / f"step_{step:08d}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = folder / "model.safetensors"
    try:
        _save_file(whole, path)
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files = {path.name: {"bytes": path.stat().st_size, "sha256": digest}}
        manifest = {"schema": 1, "step": step, "tokens": tokens, "files": files}
        write_atomically(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _save_file(whole: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(whole, path)
    except SafetensorError as error:  # the library's own word for a disk that is full
        raise OSError(f"cannot write {path}: {error}") from error


@contextmanager
def weights_of(run: Path) -> Iterator[Fill]:
    """Fills slices with the newest weights of a run, reading no more of them than the slices.

    Raises:
        UserError: there are none, or they are not what was saved.
    """
    with safe_open(_newest(run), "pt") as file:

        def fill(name: str, local: Tensor, offset: tuple[int, ...], shape: tuple[int, ...]) -> None:
            index = tuple(slice(start, start + size) for start, size in zip(offset, local.shape, strict=True))
            local.copy_(file.get_slice(name)[index])

        yield fill


def load_weights(run: Path) -> dict[str, Tensor]:
    """The newest weights of a run, by name, on the CPU. Raises what `weights_of` raises."""
    return load_file(_newest(run))


def _newest(run: Path) -> Path:
    manifests = sorted((run / "checkpoints").glob("step_*/manifest.json"))
    if not manifests:
        raise UserError(f"{run} has no saved weights: it has not finished")
    folder = manifests[-1].parent
    try:
        expected = str(json.loads(manifests[-1].read_text(encoding="utf-8"))["files"]["model.safetensors"]["sha256"])
        path = folder / "model.safetensors"
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the weights in {folder} cannot be read: {error!r}") from None
    if digest != expected:
        raise UserError(f"{path} is damaged: its SHA-256 is {digest[:12]}..., its manifest says {expected[:12]}...")
    return path
