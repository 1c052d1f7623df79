"""The cost of saving in the demo: how long the loop waits, background CPU seconds, and whether steps get slower.

    .venv/bin/python -m benchmarks.checkpoints [--steps 100]

Two runs of the demo (two processes): with a checkpoint every 20 steps, and with only the last. Prints the fraction of a
checkpoint interval that the loop waits, and the ratio of the median step times.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from scaling.record import StepLine, read_metrics, read_record


def measure(place: Path, name: str, steps: int, every: int) -> tuple[float, dict[str, float]]:
    """(seconds of the median step, the record's cost of checkpoints) of a run with a checkpoint every `every` steps."""
    words = ["experiment=demo", f"run.dir={place}", f"run.name={name}", f"train.steps={steps}", "schedule.warmup_tokens=0"]
    words += [f"checkpoint.every_tokens={every * 4096}", f"eval.every_tokens={steps * 4096}"]
    command = [str(Path(sys.executable).parent / "foretrain"), "train", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = [line.step_seconds for line in read_metrics(place / name) if isinstance(line, StepLine)]
    return statistics.median(lines[5:]), read_record(place / name).checkpoints


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        plain, _ = measure(Path(folder), "plain", steps, steps)
        step, cost = measure(Path(folder), "saving", steps, 20)
    saved, stall = cost["saved"], cost["stall_seconds"] / cost["saved"]
    print(
        f"{saved:.0f} checkpoints of {cost['bytes']:,.0f} bytes, {cost['cpu_seconds'] / saved:.3f} CPU seconds each, both ranks"
    )
    print(
        f"the loop waited {1000 * stall:.1f} ms for each: {100 * stall / (20 * step):.2f} % of 20 steps of {1000 * step:.0f} ms"
    )
    print(f"median step with checkpoints / without: {step / plain:.3f}")


if __name__ == "__main__":
    main()
