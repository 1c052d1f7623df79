"""The run that stops and goes on, and the layouts it does so on."""

LAYOUTS: dict[str, dict[str, int]] = {
    "single": {},
    "shard2": {"shard": 2},
    "tensor2": {"tensor": 2},
    "context2": {"context": 2},
    "pipeline2": {"pipeline": 2},
    "tensor2_shard2": {"tensor": 2, "shard": 2},
    "replicate2_shard2": {"replicate": 2, "shard": 2},
}
MODEL = [
    *("model.num_layers=2", "model.hidden_size=32", "model.num_heads=4", "model.num_kv_heads=2", "model.ffn_size=46"),
    *("model.vocab_size=270", "model.init_std=0.1", "train.sequence=32", "train.batch_tokens=128"),
    *(
        "eval.tokens=160",
        "eval.every_tokens=640",
        "checkpoint.every_tokens=1280",
        "health.step_timeout_seconds=null",
        "schedule.peak=5e-3",
        "schedule.decay_fraction=0.25",
    ),
]
MEASURED = ("loss", "gradient_norm", "learning_rate", "tokens", "phase", "validation")
