"""What a start costs."""

import subprocess
import sys

from scaling.record import read_record

CODE = """
import os, sys
from train.command.train import main
assert main(sys.argv[1:]) == 0
print("imported", *({"torch._dynamo", "torch.distributed.pipelining"} & set(sys.modules)), os.environ["GOMP_SPINCOUNT"])
"""
MODEL = ["model.num_layers=1", "model.hidden_size=16", "model.num_heads=2", "model.ffn_size=32", "model.vocab_size=260"]
LENGTH = ["train.steps=2", "train.sequence=32", "train.batch_tokens=128", "train.microbatch=2", "eval.tokens=128"]


def test_a_run_that_compiles_nothing_imports_no_compiler(tmp_path):
    """torch's compiler takes as long to import as all else after torch."""
    (tmp_path / "text.txt").write_text("one line of text\n" * 300)
    words = ["data=files", f"data.files=[{tmp_path}/text.txt]", f"data.cache_dir={tmp_path}/cache", "tokenizer=bytes"]
    words += [*MODEL, *LENGTH, "schedule.warmup_tokens=0", f"run.dir={tmp_path}"]
    ended = subprocess.run([sys.executable, "-c", CODE, *words], capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.splitlines()[-1] == "imported 1000"


def test_a_run_whose_output_meets_a_full_disk_goes_on(tmp_path):
    (tmp_path / "text.txt").write_text("one line of text\n" * 300)
    words = ["data=files", f"data.files=[{tmp_path}/text.txt]", f"data.cache_dir={tmp_path}/cache", "tokenizer=bytes"]
    words += [*MODEL, *LENGTH, "schedule.warmup_tokens=0", f"run.dir={tmp_path}", "run.name=a"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run([sys.executable, "-m", "train", *words], stdout=full, stderr=full, timeout=120, check=False)
    assert ended.returncode == 0
    assert read_record(tmp_path / "a").status == "finished"


def test_every_command_spins_briefly():
    code = "import os; from train.evaluate import main; main(['nowhere']); print(os.environ['GOMP_SPINCOUNT'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1000\n"
