"""What is on disk can be trusted or is passed over; a hostile checkpoint runs nothing; a full disk stops nothing."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from scaling.record import StepLine, read_metrics, read_record
from tests.support import console
from tests.support.letters import corpus_of_letters
from train.checkpoint.manifest import BrokenCheckpointError, Manifest, Progress, folder_of, newest_first, retain
from train.checkpoint.storage import read_metadata, read_whole
from train.checkpoint.verify import hash_files, verify_alone
from train.trained.checkpoint import load_weights

RUN = [
    *("model.num_layers=1", "model.hidden_size=16", "model.num_heads=2", "model.ffn_size=32", "model.vocab_size=260"),
    *("train.steps=12", "train.sequence=32", "train.batch_tokens=256", "train.microbatch=4", "eval.tokens=512"),
    *(
        "schedule.warmup_tokens=0",
        "schedule.decay_fraction=0",
        "checkpoint.every_tokens=1024",
        "checkpoint.keep=3",
        "train.precision=fp64",
    ),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def words(place: Path, *more: str) -> list[str]:
    corpus = corpus_of_letters(place, 300)
    return [f"run.dir={place}/runs", "run.name=a", *corpus, *RUN, *more]


@pytest.fixture(scope="module")
def two_ranks(place, group) -> Path:
    """A run of two processes that was killed before it wrote its end: three checkpoints, at steps 4, 8 and 12."""
    from tests.support.console import on_rank

    answers = group(2).run(on_rank, words(place, "parallel.shard=2"))
    assert [code for code, _, _ in answers] == [0, 0], answers
    run = place / "runs" / "a"
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "running"}))
    assert [folder.name for folder in newest_first(run / "checkpoints")] == [f"step_{step:08d}" for step in (12, 8, 4)]
    return run


@pytest.fixture
def run(two_ranks, place) -> Path:
    """A copy of it in its place."""
    kept = place / "kept"
    if not kept.exists():
        shutil.copytree(two_ranks, kept)
    shutil.rmtree(two_ranks)
    shutil.copytree(kept, two_ranks)
    return two_ranks


def newest(run: Path) -> Path:
    return newest_first(run / "checkpoints")[0]


def losses(run: Path) -> list[float]:
    lines = [line for line in read_metrics(run) if isinstance(line, StepLine)]
    assert [line.step for line in lines] == list(range(1, 13))
    return [line.loss for line in lines]


FILES = ("manifest.json", ".metadata", "__0_0.distcp", "__1_0.distcp")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


# Every file and every damage; all the pairs of them under `slow`.
DAMAGED = {("manifest.json", truncate), (".metadata", flip), ("__0_0.distcp", os.remove), ("__1_0.distcp", flip)}


@pytest.mark.parametrize(
    "name, damage",
    [
        pytest.param(name, damage, marks=[] if (name, damage) in DAMAGED else [pytest.mark.slow])
        for name in FILES
        for damage in (truncate, flip, os.remove)
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_as_ever(run, place, name, damage):
    whole = losses(run)
    damage(newest(run) / name)
    answer = console.warm("train", *words(place))  # one process goes on where two were
    assert answer.code == 0, answer.err
    assert f"{newest(run)} is passed over: " in answer.err
    assert f"going on from {folder_of(run / 'checkpoints', 8)} " in answer.err
    assert losses(run) == pytest.approx(whole, rel=1e-10)
    assert read_record(run).status == "finished"
    assert verify_alone(newest(run)).progress == Progress(12, 12 * 256, 12 * 8)


@pytest.mark.parametrize("damage", [flip, os.remove])
def test_all_damaged_it_stops_and_starts_over_only_when_told(run, place, damage):
    """A hiccup of the storage must not begin a long run again."""
    whole = losses(run)
    for folder in newest_first(run / "checkpoints"):
        damage(folder / ("__0_0.distcp" if damage is flip else "manifest.json"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.suffix in (".json", ".jsonl")}
    answer = console.warm("train", *words(place))
    answer.assert_refused("none of the 3 checkpoints", "step_00000012: ", "run.resume=restart", code=1)
    assert {path: path.read_bytes() for path in before} == before
    answer = console.warm("train", *words(place, "run.resume=restart"))
    assert answer.code == 0, answer.err
    assert "run.resume=restart: starting over" in answer.err
    assert losses(run) == pytest.approx(whole, rel=1e-10)
    assert (run / "aside_metrics.jsonl").exists()
    assert (run / "checkpoints" / "aside_step_00000008").exists() == (damage is flip)
    # A finished run stays one, whatever the word.
    assert "is finished" in console.warm("train", *words(place, "run.resume=restart")).out


def test_a_first_save_that_was_killed_is_no_lost_checkpoint(run, place):
    whole = losses(run)
    first, *others = reversed(newest_first(run / "checkpoints"))
    (first / "manifest.json").unlink()
    for folder in others:
        shutil.rmtree(folder)
    answer = console.warm("train", *words(place))
    assert answer.code == 0, answer.err
    assert "starting over" in answer.err
    assert losses(run) == pytest.approx(whole, rel=1e-10)


def test_a_damaged_record_is_rebuilt_and_the_run_goes_on(run, place):
    whole = losses(run)
    shutil.rmtree(newest(run))  # four of twelve steps are to be done
    (run / "run.json").write_bytes(b"\xff{")
    answer = console.warm("train", *words(place))
    assert answer.code == 0, answer.err
    assert "run.json is not JSON" in answer.err
    assert "rebuilt" in answer.err
    assert f"going on from {folder_of(run / 'checkpoints', 8)} " in answer.err
    assert losses(run) == pytest.approx(whole, rel=1e-10)
    assert (run / "aside_run.json").read_bytes() == b"\xff{"


def test_a_trained_run_whose_record_is_damaged_ends_once_more(run, place):
    good = read_record(run)
    (run / "run.json").unlink()
    answer = console.warm("train", *words(place))
    assert answer.code == 0, answer.err
    record = read_record(run)
    assert (record.status, record.tokens, record.loss) == ("finished", good.tokens, good.loss)
    assert record.flops == good.flops > 0
    assert record.tokens_per_second
    assert record.wall_seconds >= sum(line.step_seconds for line in read_metrics(run) if isinstance(line, StepLine))


@pytest.mark.parametrize(
    "bad", [b"\xff\xfe\n", b"{\n", b'{"step": "x"}\n', b'{"learning_rate": 1}\n', b"[]\n", b"null\n", b"\x00" * 64 + b"\n"]
)
def test_a_bad_line_of_the_metrics_is_left_out_and_a_hole_is_named(run, place, bad):
    whole = losses(run)
    shutil.rmtree(newest(run))
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join([*lines[:4], bad, *lines[6:]]))
    answer = console.warm("train", *words(place))
    assert answer.code == 0, answer.err
    assert "Traceback" not in answer.err
    assert "metrics.jsonl:5 is not a metrics line" in answer.err
    assert "lacks steps 5-6, which the checkpoint has" in answer.err
    assert bad in (run / "aside_metrics.jsonl").read_bytes()
    found = {line.step: line.loss for line in read_metrics(run) if isinstance(line, StepLine)}
    assert list(found) == [step for step in range(1, 13) if step not in (5, 6)]
    assert list(found.values()) == pytest.approx([whole[step - 1] for step in found], rel=1e-10)


def test_weights_for_others_are_verified_too(run):
    assert load_weights(run)["norm.weight"].shape == (16,)
    flip(newest(run) / "__1_0.distcp")
    answer = console.warm("generate", str(run), "--prompt", "a")
    answer.assert_refused("is not what was saved: __1_0.distcp")


class _Hostile:
    def __reduce__(self):
        return (os.system, ("touch /tmp/foretrain-was-here",))


def _seal(folder: Path) -> None:
    """As whoever made the checkpoint would: a manifest that agrees with the files."""
    manifest = Manifest.read(folder)
    Manifest(**{**vars(manifest), "files": hash_files(folder, manifest.files)}).write(folder)


def test_a_hostile_checkpoint_runs_nothing(run, place):
    victim = Path("/tmp/foretrain-was-here")
    victim.unlink(missing_ok=True)
    metadata = read_metadata(newest(run))
    metadata.planner_data = _Hostile()
    (newest(run) / ".metadata").write_bytes(pickle.dumps(metadata))
    _seal(newest(run))
    verify_alone(newest(run))
    with pytest.raises(BrokenCheckpointError, match=r"asks for posix\.system"):
        read_metadata(newest(run))
    answer = console.warm("train", *words(place))
    assert answer.code == 0, answer.err
    assert "is passed over: .metadata asks for posix.system" in answer.err
    assert not victim.exists()


def test_a_hostile_checkpoint_generates_nothing(run):
    metadata = read_metadata(newest(run))
    metadata.planner_data = _Hostile()
    (newest(run) / ".metadata").write_bytes(pickle.dumps(metadata))
    _seal(newest(run))
    console.warm("generate", str(run), "--prompt", "a").assert_refused("asks for posix.system")
    # A save under way has no manifest yet: the one before counts.
    (newest(run) / "manifest.json").unlink()
    assert console.warm("generate", str(run), "--prompt", "a").code == 0


def test_a_refused_start_leaves_the_record_and_the_checkpoints_as_they_were(run, place):
    before = {
        path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name not in (".lock", "rank_0000.log")
    }
    answer = console.warm("train", *words(place, "model.hidden_size=32", "run.resume_force=true"))
    answer.assert_refused("does not fit this run")
    assert {path: path.read_bytes() for path in before} == before


def test_going_back_sets_later_checkpoints_aside(run, place):
    """Else a run that was then killed would go on from one of them, past steps its metrics have lost."""
    older = folder_of(run / "checkpoints", 4)
    assert console.warm("train", *words(place, f"run.resume={older}")).code == 0
    assert {path.name for path in (run / "checkpoints").glob("aside_*")} == {"aside_step_00000008", "aside_step_00000012"}
    assert len(losses(run)) == 12


def test_what_is_no_tensor_and_what_lies_elsewhere_are_refused(run):
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    folder = newest(run)
    metadata = read_metadata(folder)
    metadata.state_dict_metadata["model.norm.weight"] = BytesStorageMetadata()
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(BrokenCheckpointError, match=r"model\.norm\.weight is no tensor"):
        read_whole(folder, "model.")
    metadata = read_metadata(newest_first(run / "checkpoints")[1])
    next(iter(metadata.storage_data.values())).relative_path = "../../run.json"
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(BrokenCheckpointError, match="outside its folder"):
        read_metadata(folder)


def test_a_tensor_file_is_read_without_unpickling(run):
    folder = newest(run)
    metadata = read_metadata(folder)
    name = metadata.storage_data[next(iter(metadata.storage_data))].relative_path
    torch.save(_Hostile(), folder / name)
    victim = Path("/tmp/foretrain-was-here")
    victim.unlink(missing_ok=True)
    with pytest.raises(BrokenCheckpointError, match="cannot read it"):
        read_whole(folder, "model.")
    assert not victim.exists()


def test_a_disk_too_full_for_checkpoints_does_not_stop_the_run_until_its_end(place):
    answer = console.warm("train", *words(place, "run.name=full"), limit_bytes=30_000)
    answer.assert_refused("is trained, but its last checkpoint could not be written", code=1)
    assert "no checkpoint could be written" in answer.err
    run = place / "runs" / "full"
    assert losses(run)
    assert read_record(run).status == "failed"
    assert newest_first(run / "checkpoints") == []
    again = console.warm("train", *words(place, "run.name=full"))
    assert again.code == 0, again.err


def test_another_configuration_is_shown_and_refused_unless_forced(run, place):
    console.warm("train", *words(place, "schedule.peak=1e-3")).assert_refused("schedule.peak: was 0.005, is 0.001")
    forced = console.warm("train", *words(place, "schedule.peak=1e-3", "run.resume_force=true", "parallel.shard=1"))
    assert forced.code == 0, forced.err
    assert "changed since the last start: schedule.peak: was 0.005, is 0.001" in forced.err
    assert "changed since the last start: parallel.shard: was 2, is 1" in forced.err


def test_a_named_checkpoint_is_gone_on_from(run, place):
    whole = losses(run)
    older = folder_of(run / "checkpoints", 4)
    answer = console.warm("train", *words(place, "run.name=b", f"run.resume={older}"))
    assert answer.code == 0, answer.err
    lines = [line for line in read_metrics(place / "runs" / "b") if isinstance(line, StepLine)]
    assert [line.step for line in lines] == list(range(5, 13))
    assert [line.loss for line in lines] == pytest.approx(whole[4:], rel=1e-10)
    assert read_record(place / "runs" / "b").resumed_from == str(older)
    console.warm("train", *words(place, "run.name=c", "run.resume=nowhere")).assert_refused(
        "run.resume=nowhere is no checkpoint"
    )
    missing = console.warm("train", *words(place, "run.name=c", f"run.resume={run}"))
    missing.assert_refused("is no checkpoint: there is ", "step_00000012")
    other = console.warm("train", *words(place, "run.name=c", f"run.resume={older}", "schedule.peak=1e-3"))
    other.assert_refused("is of a run that differs (run.resume_force=true", "schedule.peak")
    flip(older / "__0_0.distcp")
    broken = console.warm("train", *words(place, "run.name=c", f"run.resume={older}"))
    broken.assert_refused("is not what was saved")
    assert not (place / "runs" / "c").exists()


def test_old_checkpoints_go_and_every_nth_stays(tmp_path):
    manifest = Manifest(
        progress=Progress(), config_hash="", layout={}, world_size=1, precision="fp32", versions={}, saved="", files={}
    )
    for step in range(1, 11):
        folder = folder_of(tmp_path, step)
        folder.mkdir()
        Manifest(**{**vars(manifest), "progress": Progress(step, step * 100, step)}).write(folder)
        retain(tmp_path, keep=2, for_good=lambda older, tokens: tokens // 300 > older // 300)
    assert [int(folder.name[5:]) for folder in newest_first(tmp_path)] == [10, 9, 6, 3]
