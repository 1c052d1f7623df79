"""What the project computes, over many configurations, so that a change which should change nothing can be checked to the bit.

    .venv/bin/python -m benchmarks.recording record A.json [--tree DIR]     run every case with the code of DIR
    .venv/bin/python -m benchmarks.recording compare A.json B.json          exit code 0: equal to the bit; 1: not
    .venv/bin/python -m benchmarks.recording since REV                      this checkout, changes included, against a commit

A case is one command line of the project and what is read from it: losses, gradient norms, weights, files, fitted numbers.
Nothing is imported from the tree, so that one script serves any commit. Messages are notes, which are shown where they differ
and make no case unequal. Recordings of one machine and the same versions can be compared. `train.compile`, GPUs and several
nodes are not in them.

A command runs in a fork of this process, which has imported the libraries: that takes a fifth of the time of a new interpreter.
"""

import argparse
import hashlib
import json
import math
import os
import pickle
import pkgutil
import random
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
PLACE = "PLACE"  # stands for the folder in which commands run, in everything they write
LIMIT_SECONDS = 300  # a command that takes longer hangs; the slowest takes a tenth of that
PRELOADED = [
    "torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.pipelining", "typer", "hydra",
    "torch.distributed.tensor.parallel", "matplotlib.pyplot", "rich.progress", "rich.table", "safetensors.torch", "tokenizers",
]  # fmt: skip
LEFT_OUT = {
    "step_seconds": "clock", "tokens_per_second": "clock", "wall_seconds": "clock", "stall_seconds": "clock", "mfu": "clock",
    "cpu_seconds": "clock", "mfu_causal": "clock", "started": "clock", "ended": "clock", "seconds": "clock",
    "memory_bytes": "timing of threads", "peak_memory_bytes": "timing of threads", "device": "machine", "git_commit": "commit",
    "versions": "versions",
}  # fmt: skip
"""Keys that say nothing about what was computed, and what they depend on. `config_hash` goes too where it depends on a path."""
NOTED = {"warnings", "warned"}
"""Keys of wordings, which are recorded as notes."""
UNHASHED = ("run.json", "metrics.jsonl", "config.yaml", "manifest.json", ".log", ".lock", "fingerprints.json", ".html")
"""Ends of the names of files without a hash here: they are read key by key, or hold times, versions, paths, wordings."""
DATA = "data=files data.files=[text/*.txt] data.document_separator=@@ data.validation_fraction=0.05 data.cache_dir=cache"
VOCABULARY = "tokenizer.vocab_size=512 model.vocab_size=512"
MODEL = f"{VOCABULARY} model.num_layers=4 model.hidden_size=64 model.num_heads=4 model.num_kv_heads=2 model.ffn_size=128"
LENGTH = "train.steps=8 train.sequence=64 train.batch_tokens=1024 train.microbatch=4 eval.tokens=2048 eval.every_tokens=4096"
TINY = f"{DATA} {MODEL} {LENGTH} schedule.warmup_tokens=2048"
RUNS = {
    "one": "",
    "replicate": "parallel.replicate=2",
    "tensor": "parallel.tensor=2",
    "pipeline-tied": "parallel.pipeline=2 model.tie_embeddings=true",
    "pipeline-interleaved": "parallel.pipeline=2 parallel.pipeline_schedule=interleaved",
    "pipeline-zbv": "parallel.pipeline=2 parallel.pipeline_schedule=zbv",
    "token-ring": "parallel.context=2 parallel.context_method=token_ring parallel.context_partition=balanced "
    "train.microbatch=8",
    "ring": "parallel.context=2 parallel.context_method=ring",
    "ulysses": "parallel.context=2 parallel.context_method=ulysses parallel.context_partition=contiguous train.microbatch=8",
    "tensor-shard": "parallel.tensor=2 parallel.shard=2 train.microbatch=8",
    "pipeline-context-fp64": "parallel.pipeline=2 parallel.context=2 parallel.context_topology=mesh train.precision=fp64",
    "recompute-selective": "parallel.recompute=selective parallel.shard=2",
    "gelu-recompute-full": "parallel.recompute=full model.ffn=gelu model.qk_norm=false model.num_kv_heads=null",
    "z-loss": "train.z_loss=0.01 model.qk_norm=false parallel.tensor=2 train.microbatch=16",
    "bf16": "train.precision=bf16 parallel.shard=2",
    "fp64-tied": "train.precision=fp64 model.tie_embeddings=true",
    "power-mup": "schedule=power optimizer.mup=true optimizer.mup_base_width=32 model.init_std=0.1",
    "cosine-growing-batch": "schedule=cosine train.batch_warmup_start=256 train.batch_warmup_tokens=3072",
    "wsd-s": "schedule=wsd_s schedule.ends=[4096] schedule.decay_fraction=0.25 schedule.warmup_shape=cosine",
    "muon": "optimizer=muon parallel.replicate=2",
    "rewound": "health.on_spike=rewind health.spike_window=3 health.spike_threshold=1 schedule.peak=1e-6",
    "qat-4": "quant=qat quant.bits=4 quant.start=0.5",
    "qat-2-group-shard": "quant=qat quant.bits=2 quant.group=32 quant.start=0.25 parallel.shard=2",
    "qat-2-group-tensor": "quant=qat quant.bits=2 quant.group=32 quant.start=0.25 parallel.tensor=2 train.microbatch=16",
    "qat-ternary": "quant=qat quant.bits=1.58 quant.fuse_decay=false quant.start=0.5 parallel.recompute=selective",
    "qat-8-activations": "quant=qat quant.bits=8 quant.activation_bits=8 quant.start=0 parallel.pipeline=2",
    "trunk": "schedule=constant checkpoint.every_tokens=2048 checkpoint.keep_every=1",
}
CUT, DRAWS = "runs/trunk/checkpoints/step_00000004", "--bootstrap 100 --seed 1 --json"
WHOLE = "parallel.tensor=8 parallel.shard=2 train.batch_tokens=1048576 train.microbatch=1 train.dry_run=true"
LAWS = ("chinchilla", "isoflop", "over-training", "downstream", "qat-fraction", "qat-loss", "learning-rate")
FIRST = {"files cache": f"train.data prepare {DATA} {VOCABULARY}"}
FIRST |= {f"files laws/{law}.csv": f"scaling simulate {law} --out laws/{law}.csv" for law in LAWS}
SECOND = {f"run {name}": f"train {TINY} run.name={name} {words}" for name, words in RUNS.items()}
SECOND |= {f"json fit-{law}": f"scaling fit {law} laws/{law}.csv --out fits/{law} {DRAWS}" for law in LAWS}
SECOND["json fit-qat-loss"] += " --where 'parameters < 5e8 and bits < 6'"
SECOND["json fit-downstream"] += " --holdout 'loss < 2.6'"
POINTS, C4 = "shared/data/chinchilla_points.csv", "shared/data/overtraining_c4.csv"
SECOND |= {
    "run shard": f"foretrain train {TINY} run.name=shard parallel.shard=2",
    "json fit-points": f"scaling fit chinchilla {POINTS} --where 'loss < 4' --fix alpha=0.35 {DRAWS}",
    "json fit-c4": f"scaling fit over-training {C4} --where 'flops < 1e20' --holdout 'parameters > 1e9' {DRAWS}",
    "json fit-c4-error": f"scaling fit downstream {C4} --error error_17 --objective huber-log {DRAWS}",
}
THIRD = {
    "files exports/one": "train.export runs/one --out exports/one",
    "files exports/mup": "train.export runs/power-mup --out exports/mup",
    "files exports/llama": "train.export runs/z-loss --out exports/llama",
    "files exports/packed": "train.export runs/qat-4 --format int-packed --out exports/packed",
    "files exports/ternary": "train.export runs/qat-ternary --format int-packed --out exports/ternary",
    "files exports/rounded": "train.export runs/one --format int-packed --quantize bits=3,group=32 --out exports/rounded",
    "files reports": "scaling report fits/chinchilla fits/isoflop --out reports/report.html",
    "json evaluate": "train.evaluate runs/one --json",
    "json evaluate-rounded": "train.evaluate runs/one --quantize bits=4 --json",
    "json evaluate-qat": "train.evaluate runs/qat-2-group-shard --json",
    "text generate": "train.generate runs/one --prompt abc --tokens 40 --seed 3",
    "text generate-likeliest": "train.generate runs/qat-4 --prompt abc --tokens 40 --temperature 0",
    "numbers data": f"train.data inspect {DATA} {VOCABULARY} train.sequence=64",
    "json table": "scaling table runs --columns name,parameters,tokens,loss,bits,qat_fraction,flops --json",
    "json simulate": "scaling simulate over-training --sets 4 --bootstrap 100 --seed 2 --json",
    "json predict-chain": "scaling predict fits/chinchilla fits/downstream --parameters 7e9 --tokens 1.4e11 --json",
    "json predict-qat": "scaling predict fits/qat-loss --parameters 1e9 --tokens 2e10 --bits 3 --qat-fraction 0.3 --json",
    "json plan": "scaling plan fits/chinchilla fits/learning-rate --batch-tokens 1e6 --flops 1e21 --json",
    "json plan-qat": "scaling plan fits/chinchilla fits/qat-fraction --flops 1e20 --bits 2,4 --memory-gib 2 --json",
    "json plan-served": "scaling plan fits/over-training --flops 1e21 --inference-tokens 1e12 --json",
    "numbers schedule-power": "train.schedule schedule=power train.tokens=1e9 optimizer.mup=true",
    "numbers schedule-batches": "train.schedule train.batch_warmup_start=2048 train.batch_warmup_tokens=2e5",
    "numbers schedule-qat": "train.schedule schedule.decay_shape=square quant=qat quant.start=0.7 quant.fuse_decay=false",
    "text config": "train --cfg job",
    "text config-words": "train --cfg job experiment=demo model=8b optimizer=muon schedule=power quant=qat tokenizer=bytes",
    "numbers dry-run": f"train {WHOLE} model=175b parallel.pipeline=8 parallel.pipeline_schedule=interleaved",
    "numbers dry-run-qat": f"train {WHOLE} model=8b parallel.context=2 quant=qat quant.start=0.5 quant.group=128",
    "message help": "train --help",
    "message unknown-key": "train train.stepz=3",
    "message contradictions": "train train.batch_tokens=1000 schedule.warmup_tokens=9e9 optimizer=muon parallel.shard=2",
    "message impossible-layout": "train parallel.tensor=3 parallel.pipeline=5",
    "message another-run": f"train {TINY} run.name=one model.hidden_size=32",
    "message no-checkpoint": "train.branch runs/trunk --at 5000 --decay-tokens 1000",
    "message bad-where": "scaling fit chinchilla laws/chinchilla.csv --where 'loss <'",
}
FOURTH = {
    "run branch": "train.branch runs/trunk --at 6144 --decay-tokens 3e3 schedule.decay_shape=one_minus_sqrt run.name=branch",
    "run branch-qat": "train.branch runs/trunk --at 4096 quant=qat quant.bits=3 quant.start=0.5 run.name=branch-qat",
    "run longer": f"train {TINY} run.name=longer run.trunk={CUT} schedule=cosine train.steps=10",
    "run resumed": f"train {TINY} run.name=resumed run.resume={CUT} {RUNS['trunk']} parallel.shard=2",
    "run loaded": f"train {TINY} run.name=loaded model.initial_weights=exports/one parallel.tensor=2 train.microbatch=16",
}
STAGES = (FIRST, SECOND, THIRD, FOURTH)
"""Kind and name of every case, and its command. What a stage needs, the stages before it leave."""


@dataclass
class Job:
    """A case to run, under way, or ended."""

    kind: str
    """run: the folder runs/NAME is read; files: the path NAME; json, text, numbers: standard output; message: the exit code"""
    name: str
    command: str  # as it stands behind `python -m`, or `foretrain ...`
    started: float = 0.0
    code: int = 0  # of the process that ended first with another than 0

    @property
    def ranks(self) -> int:
        """Processes to start: one where nothing is trained, and where `foretrain` starts them."""
        if self.kind != "run" or self.command.startswith("foretrain"):
            return 1
        return math.prod(map(int, re.findall(r"parallel\.(?:replicate|shard|tensor|pipeline|context)=(\d+)", self.command)))

    def said(self, ending: str, place: Path) -> Path:
        """Where its processes' standard output (out) or standard error (err) lies."""
        return place / "said" / f"{self.name.replace('/', '-')}.{ending}"


def run_jobs(waiting: list[Job], tree: Path, place: Path) -> Iterator[Job]:
    """Run jobs, as many at a time as there are processors for; each is yielded when it has ended."""
    running: dict[int, Job] = {}
    try:
        while waiting or running:
            while waiting and (not running or len(running) + waiting[0].ranks <= (os.cpu_count() or 1)):
                job = waiting.pop(0)
                running |= dict.fromkeys(_start(job, tree, place), job)
            pid, status = os.wait()
            job = running.pop(pid)
            others = [other for other in running if running[other] is job]
            if status and not job.code:
                job.code = os.waitstatus_to_exitcode(status)
                for other in others:  # they would wait for this one
                    os.kill(other, signal.SIGKILL)
            if not others:
                yield job
    finally:
        for pid in running:
            os.kill(pid, signal.SIGKILL)


def _start(job: Job, tree: Path, place: Path) -> list[int]:
    """Start the processes of a job. Returns their ids."""
    job.started = time.perf_counter()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    world |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(job.ranks))
    ranks = [{**world, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(job.ranks)]
    return [_fork(job, tree, place, variables) for variables in (ranks if job.ranks > 1 else [{}])]


def _fork(job: Job, tree: Path, place: Path, variables: dict[str, str]) -> int:
    """Start a process that does what the command does. Returns its id; the process itself never returns from here."""
    sys.stdout.flush()  # or the process would write it once more
    if pid := os.fork():
        return pid
    code = 1
    try:
        signal.alarm(LIMIT_SECONDS)
        for descriptor, ending in ((1, "out"), (2, "err")):
            os.dup2(os.open(job.said(ending, place), os.O_CREAT | os.O_WRONLY | os.O_APPEND), descriptor)
        os.chdir(place)
        os.environ.update(variables)
        # Another checkout may be installed here; it is not the one to run.
        sys.path[:] = [str(tree), *(entry for entry in sys.path if entry and not Path(entry, "pyproject.toml").exists())]
        sys.argv = shlex.split(job.command)
        if sys.argv[0] == "foretrain":
            project = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            pkgutil.resolve_name(project["scripts"]["foretrain"])()
        else:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        os._exit(code)


def read(job: Job, place: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a case has come to, flat: (what is to be equal, notes)."""
    out, err = (_text(job.said(ending, place), place) for ending in ("out", "err"))
    answers: dict[str, Callable[[], Any]] = {
        "run": lambda: _run(place / "runs" / job.name, place),
        "files": lambda: hashes(place / job.name),
        "json": lambda: json.loads(out),
        "text": out.splitlines,
        "numbers": lambda: re.findall(r"[0-9][0-9.,]*(?:e[+-]?[0-9]+)?", out),
        "message": lambda: {"exit code": job.code},
    }
    found = {key: value for key, value in flat(answers[job.kind]()) if LEFT_OUT.keys().isdisjoint(key.split("/"))}
    assert found, f"{job.name} has left nothing"
    notes = {key: value for key, value in found.items() if not NOTED.isdisjoint(key.split("/"))}
    if job.kind in ("numbers", "message"):
        notes |= flat({"out": out.splitlines(), "err": err.splitlines()})
    return {key: value for key, value in found.items() if key not in notes}, notes


def _run(folder: Path, place: Path) -> dict[str, Any]:
    result = json.loads(_text(folder / "run.json", place))
    if str(result["trunk"]).startswith(PLACE):
        del result["config_hash"]
    metrics = [json.loads(line) for line in _text(folder / "metrics.jsonl", place).splitlines()]
    config = _text(folder / "config.yaml", place).splitlines()
    return {"metrics": metrics, "record": result, "config": config, "files": hashes(folder)}


def _text(path: Path, place: Path) -> str:
    """What a file holds, without what depends on the folder or the clock."""
    return re.sub(r"(?<= in )[0-9.]+ s\b", "TIME", path.read_text(encoding="utf-8").replace(str(place), PLACE))


def hashes(at: Path) -> dict[str, str]:
    """Name and SHA-256 of a file, or of every file in a folder."""
    files = sorted(path for path in at.rglob("*") if path.is_file()) if at.is_dir() else [at]
    return {str(path.relative_to(at)): _hash(path) for path in files}


def _hash(path: Path) -> str:
    if path.name.endswith(UNHASHED):
        return ""
    content = path.read_bytes()
    if path.name == ".metadata":  # torch's, of a checkpoint: what lies where, and a random identifier
        content = repr(replace(pickle.loads(content), storage_meta=None)).encode()
    return hashlib.sha256(content).hexdigest()


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested data with its key, which is the keys on the way joined by slashes."""
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(inner, f"{key}/{name}" if key else str(name))
    else:
        yield key, value


def record(tree: Path, file: Path) -> bool:
    """Run every case with the code of `tree` and write what came out. Returns whether all of them ended well."""
    started = time.perf_counter()
    os.environ |= {"OMP_NUM_THREADS": "1", "COLUMNS": "160", "PYTHONPATH": str(tree)}
    for name in PRELOADED:
        pkgutil.resolve_name(name)
    commit = subprocess.getoutput(f"git -C {shlex.quote(str(tree))} describe --always --dirty")
    cases, notes = dict[str, Any](), dict[str, Any]()
    place = Path(tempfile.mkdtemp(prefix="recording-")).resolve()
    try:
        shared = _furnish(place)
        for stage in STAGES:
            there = {key: command for key, command in stage.items() if shared or "shared/" not in command}
            jobs = [Job(key.partition(" ")[0], key.partition(" ")[2], command) for key, command in there.items()]
            for job in run_jobs(jobs, tree, place):
                print(f"{time.perf_counter() - job.started:6.1f} s  {job.name}", file=sys.stderr)
                if job.code and job.kind != "message":
                    said = "".join(job.said(ending, place).read_text() for ending in ("out", "err"))
                    print(job.command, f"ended with {job.code}:", *said.splitlines()[-15:], sep="\n", file=sys.stderr)
                    return False
                cases[job.name], notes[job.name] = read(job, place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    file.write_text(json.dumps({"commit": commit, "cases": cases, "notes": notes}, indent=1) + "\n", encoding="utf-8")
    print(f"{file}: {len(cases)} cases in {time.perf_counter() - started:.0f} s")
    return True


def _furnish(place: Path) -> bool:
    """Fill the folder in which commands run. Returns whether the reference data is there."""
    for name in ("said", "text", "laws"):
        (place / name).mkdir()
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 7))) for _ in range(300)]
    for number in range(3):
        text = place / "text" / f"{number}.txt"
        text.write_text("@@".join(" ".join(draw.choices(words, k=draw.randint(5, 120))) for _ in range(300)), encoding="ascii")
        os.utime(text, (0, 0))  # hashes of files that are seconds old are not remembered, which makes one file less
    shared = Path(os.environ.get("FORETRAIN_SHARED", HERE.parent / "shared"))
    if shared.is_dir():
        (place / "shared").symlink_to(shared)
    else:
        print(f"there is no {shared}: the fits of its tables are skipped", file=sys.stderr)
    return shared.is_dir()


def compare(first: Path, second: Path) -> bool:
    """Print a row for every case. Returns whether all are equal."""
    left, right = (json.loads(path.read_text(encoding="utf-8")) for path in (first, second))
    print(f"{first} ({left['commit']}) | {second} ({right['commit']})")
    pairs = [(left[part], right[part]) for part in ("cases", "notes")]
    cases, notes = ({name: _difference(one.get(name, {}), other.get(name, {})) for name in one | other} for one, other in pairs)
    for name, difference in cases.items():
        print(f"{name:24} {difference or 'equal'}")
    for name in filter(notes.get, notes):
        print(f"note: {name:18} {notes[name]}")
    unequal = sum(map(bool, cases.values()))
    print(f"{unequal} of {len(cases)} cases differ" if unequal else f"all {len(cases)} cases are equal")
    return not unequal


def _difference(left: dict[str, Any], right: dict[str, Any]) -> str:
    """The first difference and how many more there are; empty where there is none."""
    one, other = ({key: json.dumps(value, ensure_ascii=False) for key, value in side.items()} for side in (left, right))
    unequal = [f"{key}: {one.get(key, '-')} | {other.get(key, '-')}" for key in one | other if one.get(key) != other.get(key)]
    return "".join(unequal[:1]) + (f" (and {len(unequal) - 1:,} more)" if len(unequal) > 1 else "")


def since(revision: str) -> bool:
    """Record a commit and this checkout, and compare them. Returns whether they are equal."""
    place = Path(tempfile.mkdtemp(prefix="recording-")).resolve()
    tree, before, after = place / "tree", place / "before.json", place / "after.json"
    worktree = ["git", "-C", str(HERE), "worktree"]
    try:
        subprocess.run([*worktree, "add", "--quiet", "--detach", str(tree), revision], check=True)
        return record(tree, before) and record(HERE, after) and compare(before, after)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([*worktree, "prune"], check=True)


def main() -> int:
    """Parse the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("record", "compare", "since"))
    parser.add_argument("words", nargs="+", metavar="FILE or REV")
    parser.add_argument("--tree", type=Path, default=HERE, help="the checkout that record runs; this one unless given")
    arguments = parser.parse_args()
    match arguments.command, *arguments.words:
        case "record", file:
            well = record(arguments.tree.resolve(), Path(file))
        case "compare", first, second:
            well = compare(Path(first), Path(second))
        case "since", revision:
            well = since(revision)
        case _:
            parser.error(f"{arguments.command} takes {'two files' if arguments.command == 'compare' else 'one word'}")
    return int(not well)


if __name__ == "__main__":
    sys.exit(main())
