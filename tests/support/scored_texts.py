"""What a rank does in the tests of scoring."""

from pathlib import Path

from parallel.mesh import World
from train.trained.layout import evaluation_config
from train.trained.scoring import open_scorer
from train.trained.weights import weights_to_use


def nats(world: World, run: str, layout: list[str], texts: list[str]) -> list[float]:
    config = evaluation_config(Path(run), layout)
    scorer = open_scorer(Path(run), config, weights_to_use(Path(run), config), world)
    return [score.nats for score in scorer.documents(texts)]
