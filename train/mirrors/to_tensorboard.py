"""The record for TensorBoard, by its own writer. Values are float32 there; the axis is the step."""

import json
from pathlib import Path
from typing import Any

from common.files import write_atomically
from scaling.record import EvaluationLine, StepLine
from train.mirrors.tags import values_of


class TensorboardMirror:
    """Event files in `<run>/mirrors/tensorboard`.

    `sent.json` says how many lines they surely have. A start tells the reader to forget what comes after those, in case a
    process was killed between writing a line and counting it.
    """

    def __init__(self, run: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = run / "mirrors" / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._summary, self._count = Event, Summary, folder / "sent.json"
        known = json.loads(self._count.read_text(encoding="utf-8")) if self._count.exists() else {"lines": 0, "step": 0}
        self.sent = int(known["lines"])
        self._step = int(known["step"])
        self._written: tuple[int, int] | None = None
        # The suffix keeps two starts within one second apart.
        self._writer: Any = EventFileWriter(str(folder), filename_suffix=f".{self.sent}")
        if self.sent:
            restart = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(step=self._step + 1, session_log=restart))

    def write(self, number: int, line: StepLine | EvaluationLine) -> None:
        """Add a line."""
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values_of(line).items()]
        self._writer.add_event(self._event(step=line.step, summary=self._summary(value=values)))
        self._written = number + 1, line.step

    def flush(self) -> None:
        """Make what was written safe, and count it."""
        if self._written is not None:
            self._writer.flush()
            write_atomically(self._count, json.dumps({"lines": self._written[0], "step": self._written[1]}))
            self._written = None

    def close(self) -> None:
        """Write the rest."""
        self.flush()
        self._writer.close()


def open_mirror(run: Path) -> TensorboardMirror:
    """The mirror of a run."""
    return TensorboardMirror(run)
