"""`foretrain layout`, as a user types it."""

import json
import time

import pytest
import torch
import yaml

from parallel.plan import commands
from parallel.plan.hardware import hardware_names, load_hardware

MODEL = "num_layers=8,hidden_size=256,num_heads=8,num_kv_heads=8,ffn_size=1024,vocab_size=1024,ffn=gelu"
COLUMNS = (
    "source status hardware model gpus layers hidden heads ffn vocab sequence global_batch tensor pipeline microbatch recompute"
)
HEADER = ",".join([*COLUMNS.split(), "zero", "tokens_per_s_per_gpu", "memory_gib"])


@pytest.fixture
def layout(capsys):
    def call(*words: str) -> tuple[int, str, str]:
        code = commands.main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def plan(layout, *words):
    code, out, err = layout("plan", "--json", *words)
    assert code == 0, err
    return json.loads(out)


def test_a_plan_as_json(layout):
    answer = plan(layout, "--model", "8b", "--gpus", "16", "--sequence", "8192", "--batch-sequences", "128", "--top", "3")
    assert len(answer["candidates"]) == 3
    speeds = [candidate["tokens_per_second_per_gpu"] for candidate in answer["candidates"]]
    assert speeds == sorted(speeds, reverse=True)
    for candidate in answer["candidates"]:
        layout_ = candidate["layout"]
        axes = [layout_[axis] for axis in ("replicate", "shard", "tensor", "pipeline", "context")]
        product = 1
        for axis in axes:
            product *= axis
        assert product == 16
        assert candidate["fits"]
        parts = dict(candidate["memory_gib"])
        assert parts.pop("total") == pytest.approx(sum(parts.values()))
        assert candidate["microbatch"] == layout_["microbatch"]
        assert candidate["recompute"] == layout_["recompute"]
        assert 0 <= candidate["bubble_fraction"] < 1
        assert 0 < candidate["mfu"] < 1
        assert candidate["step_seconds"] > 0
    assert answer["assumptions"]["hardware"] == "h100"


def test_what_is_fixed_stays_and_the_rest_is_searched(layout):
    answer = plan(
        layout, "--model", "175b", "--gpus", "1024", "--batch-sequences", "1024", "--layout", "tensor=8,pipeline=8,microbatch=1"
    )
    for candidate in answer["candidates"]:
        chosen = candidate["layout"]
        assert (chosen["tensor"], chosen["pipeline"], chosen["microbatch"]) == (8, 8, 1)


def test_of_equally_fast_layouts_that_with_fewest_kinds_of_ranks_comes_first(layout):
    """Messages of context ranks hide: 64 x 1 row, 32 x 2 and 16 x 4 are the same work, and one axis is less to go wrong."""
    answer = plan(layout, "--model", "8b", "--gpus", "64", "--sequence", "8192", "--batch-sequences", "512")
    first, *rest = answer["candidates"]
    equal = [one for one in rest if one["step_seconds"] == pytest.approx(first["step_seconds"], rel=1e-5)]
    assert equal
    assert first["layout"]["context"] == first["layout"]["tensor"] == 1 < min(one["layout"]["context"] for one in equal)


def test_tensor_parallelism_stays_inside_a_node_unless_asked_for(layout):
    """Too few sequences for data ranks alone: before, 16 tensor ranks over two nodes came first."""
    words = ("--model", "1t", "--gpus", "8192", "--batch-sequences", "512", "--recipe", "megatron", "--top", "20")
    found = [candidate["layout"]["tensor"] for candidate in plan(layout, *words)["candidates"]]
    assert max(found) <= load_hardware("h100").node_devices
    asked = plan(layout, *words, "--layout", "tensor=16")["candidates"]
    assert {candidate["layout"]["tensor"] for candidate in asked} == {16}


def test_a_layout_that_does_not_fit_comes_with_the_nearest_that_does(layout):
    wish = "tensor=8,pipeline=1,microbatch=4,recompute=none"
    answer = plan(layout, "--model", "175b", "--gpus", "64", "--recipe", "megatron", "--layout", wish)
    assert not answer["candidates"][0]["fits"]
    nearest = answer["nearest_that_fits"]
    assert nearest["fits"]
    code, out, _ = layout("plan", "--model", "175b", "--gpus", "64", "--recipe", "megatron", "--layout", wish)
    assert code == 0
    assert "does not fit" in " ".join(out.split())
    assert "nearest layout that fits" in " ".join(out.split())


def test_the_search_of_3072_devices_looks_at_thousands_of_layouts_quickly():
    """No test fails by the clock: it says how many layouts there are, and that a search need not forecast all of them."""
    from parallel.plan.search import layouts, search

    job = commands.job_of("1t", "h100", "native", 2048, 3072, "bf16")
    number = sum(1 for _ in layouts(job, 3072, {}))
    begin = time.perf_counter()
    assert search(job, 3072, {}, 3)[0].fits
    print(f"{number} layouts in {time.perf_counter() - begin:.2f} s")
    assert number > 1000


@pytest.mark.parametrize(
    "words, said",
    [
        (("--model", "8c", "--gpus", "8"), ("8c", "8b")),
        (("--model", "num_layers=4", "--gpus", "8"), ("hidden_size", "vocab_size")),
        (
            ("--model", "num_layers=4,hidden_size=100,num_heads=3,ffn_size=8,vocab_size=8", "--gpus", "1"),
            ("num_heads=3", "num_heads=2"),
        ),
        (("--model", MODEL, "--gpus", "8", "--layout", "tensr=2"), ("tensr", "tensor")),
        (("--model", MODEL, "--gpus", "8", "--layout", "tensor=0"), ("tensor=0",)),
        (("--model", MODEL, "--gpus", "8", "--layout", "recompute=half"), ("half", "selective")),
        (("--model", MODEL, "--gpus", "8", "--layout", "tensor=3"), ("tensor=3", "tensor=4")),
        (("--model", MODEL, "--gpus", "7", "--batch-sequences", "64", "--layout", "pipeline=1"), ("7 devices", "--gpus 8")),
        (("--model", MODEL, "--gpus", "8", "--hardware", "h10"), ("h10", "h100")),
        (("--model", MODEL, "--gpus", "8", "--recipe", "megatrn"), ("megatrn", "megatron")),
        (("--model", MODEL, "--gpus", "8", "--precision", "fp4"), ("fp4", "bf16")),
        (("--model", MODEL, "--gpus", "8", "--hardware", "a100-80g", "--precision", "fp8"), ("fp8", "bf16")),
    ],
)
def test_a_wrong_request_is_said_in_a_few_lines(layout, words, said):
    code, out, err = layout("plan", *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 5
    assert all(part in err for part in said), err


@pytest.mark.parametrize(
    "change, said", [({"bandwidth": 0}, "links[0].bandwidth"), ({"memory_gib": -1}, "memory_gib"), ({"peak": {}}, "peak")]
)
def test_a_machine_of_ones_own_is_checked(layout, tmp_path, change, said):
    machine = {"peak": {"fp32": 1e13, "bf16": 1e14}, "memory_gib": 40, "memory_bandwidth": 1e12}
    machine["links"] = [{"level": "node", "devices": 8, "bandwidth": 1e11}, {"level": "network", "bandwidth": 1e10}]
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(machine))
    words = ("--model", MODEL, "--gpus", "8", "--hardware", file)
    assert plan(layout, *words)["assumptions"]["hardware"] == "mine"
    if "bandwidth" in change:
        machine["links"][0].update(change)
    else:
        machine.update(change)
    file.write_text(yaml.safe_dump(machine))
    code, _, err = layout("plan", *words)
    assert code == 2
    assert said in err


@pytest.mark.parametrize("name", hardware_names())
def test_every_machine_loads(name):
    machine = load_hardware(name)
    assert machine.node_devices >= 1
    assert machine.flops("bf16") >= machine.flops("fp32")
    assert machine.source


def test_a_table_of_runs_is_checked(layout, tmp_path):
    rows = [
        "mine,success,h100,GPT,8,24,2048,16,8192,50304,2048,64,1,1,4,none,1,20000,60",
        "mine,oom,h100,GPT,8,96,12288,96,49152,50304,2048,64,1,1,4,none,1,,",
        "mine,success,h100,GPT,12,24,2048,16,8192,50304,2048,64,8,1,4,none,1,20000,60",
    ]
    table = tmp_path / "rows.csv"
    table.write_text("\n".join([HEADER, *rows]))
    code, out, err = layout("check", table, "--recipe", "megatron", "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert [row["fits"] for row in answer["rows"]] == [True, False]
    assert [row["measured"]["tokens_per_second_per_gpu"] for row in answer["rows"]] == [20000, None]
    assert set(answer["rows"][0]) >= {"name", "fits", "memory_gib", "tokens_per_second_per_gpu", "mfu", "measured"}
    assert answer["error"]["median"] == pytest.approx(abs(answer["rows"][0]["tokens_per_second_per_gpu"] / 20000 - 1))
    assert answer["error"]["fit_accuracy"] == 1.0
    assert answer["skipped"] == [{"name": "line 4", "why": "its axes make 8 devices, not 12"}]
    code, out, _ = layout("check", table, "--recipe", "megatron", "--fit-rows")
    assert code == 0
    assert "matmul_efficiency" in out


def test_a_table_that_lacks_columns_names_them(layout, tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text("model,gpus\nGPT,8\n")
    code, _, err = layout("check", table)
    assert code == 2
    assert "layers" in err
    assert "microbatch" in err
    assert len(err.splitlines()) <= 5
    assert layout("check", tmp_path / "none.csv")[0] == 2
    assert layout("check", tmp_path)[0] == 2


def test_pictures_are_drawn(layout, tmp_path):
    picture = tmp_path / "plan.png"
    plan(layout, "--model", MODEL, "--gpus", "8", "--layout", "pipeline=4", "--picture", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_an_unknown_command_names_the_nearest(layout):
    code, _, err = layout("plann")
    assert code == 2
    assert "plan" in err


def test_processes_without_a_gpu_share_the_memory_of_their_host(monkeypatch):
    """Eight devices of the host's whole memory each would make every layout fit."""
    from parallel.plan import calibrate
    from parallel.plan.hardware import host_memory

    monkeypatch.setattr(calibrate, "_products", lambda device, dtype: 1e11)
    monkeypatch.setattr(calibrate, "_memory_rate", lambda device: 1e10)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    machine = calibrate.measure_machine()
    devices = machine["links"][0]["devices"]
    assert devices == calibrate.devices_here(torch.get_num_threads())
    assert machine["memory_gib"] * devices == pytest.approx(0.8 * host_memory() / 2**30, rel=0.01)
