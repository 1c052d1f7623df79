"""Faults at random moments of one run, on changing layouts, and what is left of it in the end.

    python -m benchmarks.soak --kills 100 --place /scratch/soak
    python -m benchmarks.soak --place /scratch/soak --finish          ends the run and prints the table

Signals (SIGKILL, SIGTERM, SIGSTOP and SIGCONT) to the launcher, a worker or all; while starting, tokenising, stepping, saving
and exporting; files that cannot grow for a while, and, where --place is a small disk of its own (a tmpfs), that disk full; a
newest checkpoint that was damaged. A second call goes on where the first ended. The run without faults is made first, in the
same precision (fp64), on one process, and once more on two: what rounding alone does.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scaling.record import EvaluationLine, StepLine, read_metrics, read_record
from train.checkpoint.manifest import newest_first

COMMAND = Path(sys.executable).parent / "foretrain"
# A low rate: random text and a high one amplify the last bit of another order of sums to anything within some hundred steps.
RUN = [
    *("model.num_layers=2", "model.hidden_size=32", "model.num_heads=2", "model.ffn_size=48", "model.vocab_size=260"),
    *("train.sequence=32", "train.batch_tokens=256", "train.microbatch=2", "eval.tokens=512", "schedule.warmup_tokens=512"),
    *("train.precision=fp64", "schedule.peak=5e-4", "checkpoint.every_tokens=2560", "checkpoint.keep=3"),
    *("eval.every_tokens=25600", "parallel.oversubscribe=true", "tokenizer=bytes"),
]
ONE_OR_TWO = ["", "shard=2", "replicate=2", "tensor=2", "pipeline=2", "context=2"]
FOUR = ["tensor=2 shard=2", "context=2 shard=2", "pipeline=2 tensor=2", "context=2 tensor=2"]
PATIENCE_SECONDS = 90.0
SMALL_DISK = 1 << 30  # a disk of at most this many bytes is filled to the last one; on others files are kept from growing


def main() -> None:
    """Parse the command line, bring the faults about, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=0, help="faults to bring about in this call")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no fault after this time")
    parser.add_argument("--steps", type=int, default=2500, help="steps of the run; the same in every call")
    parser.add_argument("--place", type=Path, required=True, help="a folder for text, tokens and runs")
    parser.add_argument("--finish", action="store_true", help="end the run and print the table")
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    soak = Soak(arguments.place, arguments.steps, random.Random(arguments.seed))
    soak.reference()
    until = time.monotonic() + arguments.seconds
    while arguments.kills > 0 and soak.done() < arguments.steps - 50 and time.monotonic() < until:
        arguments.kills -= soak.life()
    if arguments.finish:
        print(soak.table())


class Soak:
    """One run, its faults, and the run without faults."""

    def __init__(self, place: Path, steps: int, draw: random.Random) -> None:
        self.place, self.steps, self.draw = place, steps, draw
        self.run, self.whole, self.twin = (place / "runs" / name for name in ("soaked", "whole", "twin"))
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "text.txt").exists():
            letters = random.Random(5)
            lines = ("".join(letters.choices("abcdefgh ", k=60)) + "\n" for _ in range(4000))
            (place / "text.txt").write_text("".join(lines))

    def words(self, name: str, layout: str = "") -> list[str]:
        """What is typed for the run of this name."""
        corpus = ["data=files", f"data.files=[{self.place}/text.txt]", f"data.cache_dir={self.place}/cache_{name}"]
        axes = [f"parallel.{axis}" for axis in layout.split()]
        return [f"run.dir={self.place}/runs", f"run.name={name}", f"train.steps={self.steps}", *corpus, *RUN, *axes]

    def reference(self) -> None:
        """The run without faults, on one process and on two."""
        for run, layout in ((self.whole, ""), (self.twin, "shard=2")):
            if not (run / "run.json").exists() or read_record(run).status != "finished":
                subprocess.run([COMMAND, "train", *self.words(run.name, layout)], check=True, capture_output=True)

    def done(self) -> int:
        """Steps in the metrics."""
        path = self.run / "metrics.jsonl"
        return path.read_bytes().count(b"learning_rate") if path.exists() else 0

    def life(self) -> int:
        """Start the run and end it by a fault. Returns the number of faults."""
        draw, faults = self.draw, 0
        if draw.random() < 0.12:
            faults += self._damage()
        if draw.random() < 0.1 and newest_first(self.run / "checkpoints"):
            faults += self._export()
        moment = draw.choice(["starting", "stepping", "stepping", "stepping", "saving", "saving", "tokenising"])
        if moment == "tokenising":
            shutil.rmtree(self.place / "cache_soaked", ignore_errors=True)
        layout = draw.choice(ONE_OR_TWO) if draw.random() < 0.8 else draw.choice(FOUR)
        with open(self.place / "stderr.txt", "w+b") as said:
            launcher = subprocess.Popen(
                [COMMAND, "train", *self.words("soaked", layout)],
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
            )
            self._reach(launcher, moment)
            while launcher.poll() is None and draw.random() < 0.3:
                faults += self._lasting(launcher, moment, layout)
            faults += self._ending(launcher, moment, layout, said.name)
        return faults

    def _reach(self, launcher: "subprocess.Popen[bytes]", moment: str) -> None:
        config, before = self.run / "config.yaml", self.done()
        written = config.stat().st_mtime_ns if config.exists() else 0

        def begun() -> bool:
            return config.exists() and config.stat().st_mtime_ns != written and self.done() > 0

        if moment == "starting":
            time.sleep(self.draw.uniform(0.5, 8.0))
        elif moment == "tokenising":
            _wait(launcher, lambda: bool(list(self.place.glob("cache_soaked/.building-*"))))
        else:
            _wait(launcher, begun)
            goal = min(self.done(), before) + self.draw.randrange(10, 60)
            _wait(launcher, lambda: self.done() > goal, 30.0)
        if moment == "saving":
            _wait(launcher, lambda: any(not (folder / "manifest.json").exists() for folder in self._folders()), 10.0)

    def _lasting(self, launcher: "subprocess.Popen[bytes]", moment: str, layout: str) -> int:
        """A fault that the run should live through: stopped and continued, or a disk that is full for a while."""
        pids = [launcher.pid, *_children(launcher.pid)]
        if self.draw.random() < 0.5:
            who, chosen = self._whom(pids)
            _signal(chosen, signal.SIGSTOP)
            time.sleep(self.draw.uniform(0.5, 3.0))
            _signal(chosen, signal.SIGCONT)
            return self._log("SIGSTOP and SIGCONT", who, moment, layout)
        if shutil.disk_usage(self.place).total < SMALL_DISK and self.draw.random() < 0.7:
            _fill(self.place / "ballast", self.draw.uniform(0.5, 4.0))
            return self._log("full disk, freed", "all", moment, layout)
        limits = [(pid, resource.prlimit(pid, resource.RLIMIT_FSIZE)) for pid in pids if Path(f"/proc/{pid}").exists()]
        for pid, (_, hard) in limits:
            _limit(pid, (4096, hard))
        time.sleep(self.draw.uniform(0.5, 3.0))
        for pid, limit in limits:
            _limit(pid, limit)
        return self._log("files that cannot grow, freed", "all", moment, layout)

    def _ending(self, launcher: "subprocess.Popen[bytes]", moment: str, layout: str, said: str) -> int:
        workers = _children(launcher.pid)
        who, chosen = self._whom([launcher.pid, *workers])
        number = self.draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        ended_before = launcher.poll() is not None
        started = time.monotonic()
        if not ended_before:
            _signal(chosen, number)
        try:
            code = launcher.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            code = -1000
        seconds = time.monotonic() - started
        time.sleep(0.3)
        orphans = [pid for pid in workers if _is_alive(pid)]
        _signal([launcher.pid, *orphans], signal.SIGKILL)
        text = Path(said).read_text(encoding="utf-8", errors="replace")
        name = "ended before its fault" if ended_before else number.name
        facts = {"code": code, "seconds": round(seconds, 1), "orphans": len(orphans), "tracebacks": text.count("Traceback")}
        if facts["tracebacks"] or orphans or code == -1000:
            (self.place / f"odd_{time.time_ns()}.txt").write_text(f"{name} {who} {moment} {layout}\n{text}")
        return self._log(name, who, moment, layout, **facts)

    def _whom(self, pids: list[int]) -> tuple[str, list[int]]:
        who = self.draw.choice(["launcher", "worker", "all"])
        if who == "launcher" or len(pids) == 1:
            return "launcher", pids[:1]
        return (who, pids) if who == "all" else (who, [self.draw.choice(pids[1:])])

    def _damage(self) -> int:
        complete = [folder for folder in self._folders() if (folder / "manifest.json").exists()]
        if len(complete) < 2:
            return 0
        victim = self.draw.choice([path for path in complete[0].iterdir() if path.stat().st_size])
        content = bytearray(victim.read_bytes())
        content[self.draw.randrange(len(content))] ^= 1 << self.draw.randrange(8)
        victim.write_bytes(content)
        return self._log("damaged checkpoint", victim.suffix or victim.name, "between lives", "")

    def _export(self) -> int:
        """Kill an export on its way: what is there afterwards must be whole or not be taken for whole."""
        out = self.place / "export"
        shutil.rmtree(out, ignore_errors=True)
        process = subprocess.Popen(
            [COMMAND, "export", str(self.run), "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        time.sleep(self.draw.uniform(1.0, 6.0))
        process.kill()
        _, text = process.communicate()
        return self._log("SIGKILL", "export", "exporting", "", tracebacks=text.count(b"Traceback"), whole=out.exists())

    def _folders(self) -> list[Path]:
        return newest_first(self.run / "checkpoints")

    def _log(self, fault: str, who: str, moment: str, layout: str, **facts: Any) -> int:
        line = {"fault": fault, "to": who, "while": moment, "layout": layout or "single", "step": self.done(), **facts}
        with open(self.place / "faults.jsonl", "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        print(line, flush=True)
        return 1

    def table(self) -> str:
        """End the run, compare it with the one without faults. Returns the table of a document."""
        ended = subprocess.run([COMMAND, "train", *self.words("soaked")], capture_output=True, text=True, check=False)
        faults = [json.loads(line) for line in (self.place / "faults.jsonl").read_text().splitlines()]
        kinds = Counter(f"{fault['fault']} to {fault['to']}" for fault in faults)
        moments = Counter(fault["while"] for fault in faults)
        layouts = Counter(fault["layout"] for fault in faults if fault["layout"] != "single")
        mine, theirs = _steps(self.run), _steps(self.whole)
        numbers = [line.step for line in mine]
        pairs = [(line, by_step) for line in mine if (by_step := theirs[line.step - 1]).step == line.step]
        twins = list(zip(_steps(self.twin), theirs, strict=True))
        validations = zip(_evaluations(self.run), _evaluations(self.whole), strict=False)
        seconds = [fault["seconds"] for fault in faults if "seconds" in fault]
        rows = {
            "faults": f"{len(faults)}",
            "what": "; ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())),
            "while": "; ".join(f"{moment} {count}" for moment, count in sorted(moments.items())),
            "layouts of several processes": "; ".join(f"{layout} {count}" for layout, count in sorted(layouts.items())),
            "exit code of the last start": f"{ended.returncode}",
            "steps of the run": f"{self.steps}",
            "steps lost": f"{len(set(range(1, self.steps + 1)) - set(numbers))}",
            "steps repeated": f"{len(numbers) - len(set(numbers))}",
            "in order": "yes" if numbers == sorted(numbers) else "no",
            "worst difference of loss": _worst(pairs, "loss"),
            "worst difference of gradient norm": _worst(pairs, "gradient_norm"),
            "worst difference of learning rate": _worst(pairs, "learning_rate"),
            "loss, gradient norm of a whole run on two processes": f"{_worst(twins, 'loss')}, {_worst(twins, 'gradient_norm')}",
            "worst difference of validation": f"{max((abs(a / b - 1) for a, b in validations), default=float('nan')):.1e}",
            "evaluations": f"{len(_evaluations(self.run))} of {len(_evaluations(self.whole))}",
            "orphans": f"{sum(fault.get('orphans', 0) for fault in faults)}",
            "tracebacks": f"{sum(fault.get('tracebacks', 0) for fault in faults) + ended.stderr.count('Traceback')}",
            "launchers that did not end in 90 s": f"{sum(fault.get('code') == -1000 for fault in faults)}",
            "longest end after a fault": f"{max(seconds, default=0.0):.1f} s",
        }
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _steps(run: Path) -> list[StepLine]:
    return [line for line in read_metrics(run) if isinstance(line, StepLine)]


def _evaluations(run: Path) -> list[float]:
    return [line.validation["validation"] for line in read_metrics(run) if isinstance(line, EvaluationLine)]


def _worst(pairs: list[tuple[StepLine, StepLine]], key: str) -> str:
    """The largest relative difference (absolute where the number is 0)."""
    values = [(getattr(mine, key), getattr(theirs, key)) for mine, theirs in pairs]
    return f"{max(abs(mine - theirs) / (abs(theirs) or 1.0) for mine, theirs in values):.1e}"


def _wait(process: "subprocess.Popen[bytes]", condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for a condition, the end of the process or of the time."""
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.003)


def _children(pid: int) -> list[int]:
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _fill(ballast: Path, seconds: float) -> None:
    """Leave the disk without a free byte for so long."""
    until = time.monotonic() + seconds
    with open(ballast, "wb", buffering=0) as stream:
        while time.monotonic() < until:
            try:
                stream.write(bytes(1 << 16))
            except OSError:
                time.sleep(0.01)
    ballast.unlink()


def _limit(pid: int, limit: tuple[int, int]) -> None:
    try:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)
    except ProcessLookupError:
        return


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


if __name__ == "__main__":
    main()
