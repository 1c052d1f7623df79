"""Jobs for the planner."""

from parallel.plan.hardware import load_hardware
from parallel.plan.job import Choice, Job
from parallel.plan.recipe import Constants, load_recipe
from parallel.shape import ModelShape


def gpt(layers: int, hidden: int, heads: int, words: int = 51200) -> ModelShape:
    return ModelShape(
        num_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        ffn_size=4 * hidden,
        vocab_size=words,
        ffn="gelu",
        tie_embeddings=True,
        qk_norm=False,
    )


def job(recipe: str, sequence_parallel: bool = True, shape: ModelShape | None = None, **choice) -> Job:
    framework = load_recipe(recipe)
    return Job(
        shape=shape or gpt(48, 6144, 64),
        sequence=2048,
        batch_sequences=512,
        hardware=load_hardware("a100-80g"),
        recipe=framework,
        choice=Choice(sequence_parallel=sequence_parallel, **choice),
        constants=Constants(activation_scale=1.0, gathered=0.0, slack_gib=0.0),
    )
