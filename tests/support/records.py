"""A run's record and a line of either kind of its metrics, with only the keys that every run has."""

from scaling.record import EvaluationLine, RunRecord, StepLine

RECORD = RunRecord(
    name="a",
    status="running",
    seed=0,
    parameters=10,
    parameters_non_embedding=5,
    tokens=0,
    flops=0.0,
    tokens_per_parameter=0.0,
    peak_learning_rate=1e-3,
    schedule="wsd",
    batch_tokens=8,
    sequence=4,
    model={"num_layers": 2},
    layout={"shard": 1},
    engine="native",
    precision="fp32",
    device="cpu",
    world_size=1,
    config_hash="0" * 64,
    git_commit=None,
    versions={"torch": "2"},
    started="2026-01-01T00:00:00+00:00",
)
STEP = StepLine(
    step=1,
    tokens=8,
    loss=5.0,
    learning_rate=1e-3,
    gradient_norm=1.0,
    phase="warmup",
    tokens_per_second=10.0,
    step_seconds=0.8,
    memory_bytes=None,
)
EVALUATION = EvaluationLine(step=1, tokens=8, validation={"validation": 4.0})
