"""The `foretrain` command, real or in a fork of a process that has imported everything already."""

import contextlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from parallel.mesh import World

COMMAND = Path(sys.executable).parent / "foretrain"


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    def assert_refused(self, *words: str, code: int = 2) -> None:
        """One message of one to five lines on standard error (log lines may stand before it), no traceback."""
        assert self.code == code, self.err
        assert "Traceback" not in self.err, self.err
        lines = self.err.splitlines()
        starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
        assert len(starts) == 1, self.err
        message = lines[starts[0] :]
        assert len(message) <= 5, self.err
        assert code == 1 or starts == [0], self.err
        for word in words:
            assert word in "\n".join(message)


def start(*words: str, limit_bytes: int | None = None, command: tuple[str, ...] = (str(COMMAND),)) -> "subprocess.Popen[str]":
    """The real console command; no file it writes may grow beyond `limit_bytes`."""

    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    return subprocess.Popen(
        [*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limit, start_new_session=True
    )


def real(*words: str, limit_bytes: int | None = None, command: tuple[str, ...] = (str(COMMAND),)) -> Answer:
    """The real console command, to its end."""
    process = start(*words, limit_bytes=limit_bytes, command=command)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return Answer(process.returncode, out, err)


def warm(*words: str, limit_bytes: int | None = None, lock_wait: float = 5.0) -> Answer:
    """What `foretrain WORDS...` does, in a fork of the fork server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.preloaded"])
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=_main, args=(list(words), folder, limit_bytes, lock_wait))
        process.start()
        process.join(120)
        if process.exitcode is None:
            process.kill()
            raise AssertionError("the command did not end within 120 seconds")
        out, err = (Path(folder, name).read_text() for name in ("out", "err"))
        return Answer(process.exitcode, out, err)


def _main(words: list[str], folder: str, limit_bytes: int | None, lock_wait: float) -> None:
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(folder, name), os.O_CREAT | os.O_WRONLY | os.O_APPEND), descriptor)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    if limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    from launch.cli import main
    from train.folder import directory

    directory.LOCK_WAIT_SECONDS = lock_wait
    sys.argv = ["foretrain", *words]
    sys.exit(main())


def on_rank(world: World, overrides: list[str], asynchronous: bool | None = None) -> tuple[int, str, str]:
    """A case for a group: what `python -m train` says and returns on this rank, in a process group that is there already.

    `asynchronous`: with the loop that GPUs take.
    """
    import io
    from functools import partial
    from unittest import mock

    import parallel.mesh
    import train.command.train
    import train.loop.run
    from parallel.environment import ProcessEnvironment

    environment = ProcessEnvironment(world.rank, world.size, world.rank, world.size, restart=0, launched=True)
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(ProcessEnvironment, "read", staticmethod(lambda: environment)),
        mock.patch.object(parallel.mesh, "connect", return_value=contextlib.nullcontext(world)),
        mock.patch.object(train.loop.run, "run", partial(train.loop.run.run, asynchronous=asynchronous)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = train.command.train.main(overrides)
    return code, out.getvalue(), err.getvalue()
