"""What an engine cannot do is said before a run starts, with what to type instead."""

import ast
import importlib.metadata
from pathlib import Path

import pytest

from parallel.engine.limits import megatron
from train.config import load_config
from train.config.rules.engine import engine_rules

ROOT = Path(__file__).parents[4]
ENGINES = ("deepspeed", "megatron")


def problems(*words: str) -> str:
    """`words`: keys of `parallel`, or of other sections with their names."""
    keys = [word if word.split("=")[0] in ("quant", "optimizer") or "." in word else f"parallel.{word}" for word in words]
    return "\n".join(engine_rules(load_config(["train.tokens=1500000", "train.microbatch=1", *keys])))


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(megatron, "has_gpu", lambda: True)


def test_what_engines_can_do_is_not_refused(gpu):
    pytest.importorskip("deepspeed")
    pytest.importorskip("megatron.core")
    assert problems() == ""
    assert problems("engine=deepspeed", "zero_stage=3", "shard=2", "context=2", "offload=parameters") == ""
    assert problems("engine=deepspeed", "train.precision=bf16") == ""
    assert problems("engine=megatron", "zero_stage=1", "tensor=2", "pipeline=2", "shard=2", "recompute=full") == ""


@pytest.mark.parametrize(
    "words, said",
    [
        (["zero_stage=1"], "leave parallel.zero_stage=null"),
        (["offload=optimizer"], "type parallel.engine=deepspeed"),
        (["fused_optimizer=true"], "fused already"),
        (["engine=deepspeed", "tensor=2"], "parallel.tensor=2: parallel.engine=deepspeed flattens whole parameters"),
        (["engine=deepspeed", "pipeline=2"], "type parallel.pipeline=1"),
        (["engine=deepspeed", "replicate=2"], "raise parallel.shard"),
        (["engine=deepspeed", "offload=parameters"], "only parallel.zero_stage=3"),
        (["engine=deepspeed", "zero_stage=3", "recompute=selective"], "type parallel.recompute=full"),
        (["engine=deepspeed", "train.precision=fp64"], "master weights are fp32"),
        (["engine=deepspeed", "train.compile=true"], "type train.compile=false"),
        (["engine=deepspeed", "optimizer=muon"], "type optimizer=adamw"),
        (["engine=deepspeed", "quant=gaussian"], "type parallel.engine=native"),
        (["engine=deepspeed", "quant=qat", "train.precision=bf16"], "they must be fp32"),
        (["engine=megatron", "context=2"], "needs TransformerEngine's attention"),
        (["engine=megatron", "zero_stage=2"], "type 1, or null"),
        (["engine=megatron", "pipeline=2", "pipeline_schedule=zbv"], "has 1f1b and interleaved"),
        (["engine=megatron", "pipeline=3"], "is not divisible by 3 stages"),
        (["engine=megatron", "quant=qat"], "fuses query, key and value"),
        (["engine=megatron", "optimizer.mup=true"], "no multipliers"),
        (["engine=megatron", "train.z_loss=1e-4"], "type train.z_loss=0"),
        (["engine=megatron", "recompute=selective"], "type none or full"),
    ],
    ids=str,
)
def test_what_an_engine_cannot_do_is_refused(gpu, words, said):
    found = problems(*words)
    assert said in found
    assert len(found.splitlines()) == 1, found


def test_without_a_gpu_megatron_is_refused(monkeypatch):
    monkeypatch.setattr(megatron, "has_gpu", lambda: False)
    assert "needs a GPU, and this machine has none: type parallel.engine=native" in problems("engine=megatron")


def test_what_is_only_looked_at_needs_neither_gpu_nor_library(monkeypatch):
    monkeypatch.setattr(megatron, "has_gpu", lambda: False)
    assert problems("engine=megatron", "tensor=2", "train.dry_run=true") == ""


@pytest.mark.parametrize("engine, library", [("deepspeed", "deepspeed"), ("megatron", "megatron-core")])
def test_a_missing_or_old_library_is_told_by_its_extra(monkeypatch, gpu, engine, library):
    found: list[str] = []

    def version(name: str) -> str:
        assert name == library
        if not found:
            raise importlib.metadata.PackageNotFoundError(name)
        return found[0]

    monkeypatch.setattr("parallel.engine.limits.request.version", version)
    assert f"needs {library}, which is not installed: type pip install '.[{engine}]'" in problems(f"engine={engine}")
    found.append("0.9.1")
    assert "or newer, this is 0.9.1: type pip install" in problems(f"engine={engine}")
    found[0] = "1.2rc1"
    assert problems(f"engine={engine}") == ""


def _strings(tree: ast.AST) -> set[str]:
    """Strings and names of code, without docstrings."""
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in documents)
    found = {node.value for node in texts if isinstance(node.value, str)}
    return found | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_engines_are_named_by_themselves_and_by_configurations_alone():
    rooms = ("common", "launch", "parallel", "quant", "scaling", "schedulers", "train")
    # The planner compares frameworks, whose recipes have the same names.
    homes = {ROOT / "parallel" / "engine", ROOT / "parallel" / "plan"}
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py") if not homes & set(path.parents)]
    naming = {
        str(path.relative_to(ROOT))
        for path in files
        for word in _strings(ast.parse(path.read_text()))
        if any(engine in word.lower() for engine in ENGINES)
    }
    assert naming == set()
