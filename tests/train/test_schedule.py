"""`foretrain schedule` draws what a run would do, and says the numbers at the borders."""

import itertools

import pytest
from matplotlib import image

from tests.support import console
from train.config import load_config
from train.schedule import main, phases

LENGTH = ["train.tokens=1e6", "train.batch_tokens=4000", "train.sequence=250", "schedule.warmup_tokens=100000"]


@pytest.mark.parametrize(
    "words, names",
    [
        (["schedule=constant"], ["warmup", "stable"]),
        (["schedule=wsd"], ["warmup", "stable", "decay"]),
        (["schedule=cosine"], ["warmup", "decay"]),
        (["schedule=power", "schedule.a=9"], ["warmup", "stable", "power law", "decay"]),
        (["schedule=power", "schedule.a=1e3"], ["warmup", "stable", "decay"]),
        (["schedule=power", "schedule.a=1e300"], ["warmup", "stable", "decay"]),
        (["schedule=power", "schedule.b=-1e-6"], ["warmup", "stable", "decay"]),
        (["schedule=wsd_s"], ["warmup", "stable", "decay", "stable", "decay", "stable", "decay"]),
        (["schedule=wsd", "schedule.decay_fraction=0"], ["warmup", "stable"]),
        (["quant=qat", "quant.start=0.9"], ["warmup", "stable", "decay, quantized"]),
        (["quant=qat", "quant.start=0.5"], ["warmup", "stable", "stable, quantized", "decay, quantized"]),
        (
            ["quant=qat", "quant.start=0.5", "quant.fuse_decay=false"],
            ["warmup", "stable", "decay", "warmup, quantized", "decay, quantized"],
        ),
    ],
)
def test_phases_cover_the_run_in_order(words, names):
    found = phases(load_config([*LENGTH, *words]))
    assert [name for name, _, _ in found] == names
    assert found[0][1] == 0
    assert found[-1][2] == 1_000_000
    assert all(before[2] == after[1] for before, after in itertools.pairwise(found))


def test_it_writes_a_picture_and_the_numbers(tmp_path):
    out = tmp_path / "drawn.png"
    growing = ["train.batch_warmup_start=2000", "train.batch_warmup_tokens=50000", "train.microbatch=8"]
    answer = console.warm("schedule", *LENGTH, *growing, "schedule.peak=3e-3", "--out", str(out))
    assert answer.code == 0, answer.err
    assert image.imread(out).std() > 0
    for number in ("100,000", "801,600", "1,002,000", "0.003", "batch: 2,000 tokens, 4,000 from"):
        assert number in answer.out, answer.out
    assert "█" in answer.out


def test_a_decay_that_quantization_cuts_short_is_said(tmp_path):
    words = ["schedule", *LENGTH, "quant=qat", "quant.start=0.95", "--out", str(tmp_path / "x.png")]
    assert (
        "warning: the learning rate decays over the 52,000 quantized tokens alone, not over the 200,000"
        in console.warm(*words).out
    )


def test_bad_input_is_refused(tmp_path):
    console.warm("schedule", *LENGTH, "schedule.decay_fraction=0.95").assert_refused("do not fit into the run's 1000000 tokens")
    none = ["schedule=cosine", "schedule.warmup_tokens=1000000"]
    console.warm("schedule", *LENGTH, *none).assert_refused("not one of the run's 1000000 tokens to decay in")
    console.warm("schedule", "schedule.peek=1").assert_refused("did you mean 'schedule.peak'?")
    nowhere = str(tmp_path / "no" / "folder.png")
    console.warm("schedule", *LENGTH, "--out", nowhere).assert_refused(f"cannot write --out {nowhere}")
    console.warm("schedule", *LENGTH, "--out", str(tmp_path / "x.txt")).assert_refused("cannot write --out")
    console.warm("schedule", *LENGTH, "--out", str(tmp_path)).assert_refused(f"--out {tmp_path} is a folder")
    console.warm("schedule", *LENGTH, "schedule=power", "schedule.b=-400").assert_refused("leave a learning rate of 0")


def test_what_it_says_it_wrote_is_there_and_a_batch_that_never_gets_there_is_named(tmp_path):
    growing = ["train.batch_warmup_start=1000", "train.batch_warmup_tokens=1e7", "train.microbatch=4"]
    answer = console.warm("schedule", *LENGTH, *growing, "--out", str(tmp_path / "drawn"))
    assert "batch: 1,000 tokens, 1,000 at the end, not 4,000: train.batch_warmup_tokens is longer than the run" in answer.out
    assert answer.out.splitlines()[-1] == f"picture: {tmp_path / 'drawn.png'}"
    assert (tmp_path / "drawn.png").exists()


def test_the_name_of_a_narrow_phase_stands_beside_the_axis(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    places, text = {}, Axes.text

    def write(self, x, y, words, **options):
        places[words] = x
        return text(self, x, y, words, **options)

    monkeypatch.setattr(Axes, "text", write)
    words = ["train.tokens=1000000000", "schedule.warmup_tokens=4096", "schedule.decay_fraction=0.001"]
    assert main([*words, "--out", str(tmp_path / "a.png")]) == 0
    total = load_config(words).total_tokens
    assert places["warmup"] >= 0.02 * total
    assert places["decay"] <= 0.98 * total
