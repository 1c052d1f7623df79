"""What the planner expects of a run before it is started: memory, time, money."""

from dataclasses import dataclass

from parallel.plan.forecast import forecast
from parallel.plan.hardware import Hardware
from parallel.plan.memory import capacity_gib
from train.config import Config, job_of


@dataclass(frozen=True)
class Expected:
    """Predicted of one run. Times are those of steps alone."""

    memory_gib: float
    """of the fullest rank"""
    capacity_gib: float
    step_seconds: float
    seconds: float
    """of all its steps"""
    device_hours: float
    dollars: float | None
    """None where no price is known"""

    @property
    def fits(self) -> bool:
        """Whether the fullest rank has room."""
        return self.memory_gib <= self.capacity_gib


def expect(config: Config, machine: Hardware, *, price: float | None = None, trunk_tokens: int = 0) -> Expected:
    """The forecast of a run on `machine`. `price`: dollars per device and hour. `trunk_tokens`: not trained here."""
    said = forecast(job_of(config, machine))
    seconds = said.step_seconds * (config.total_tokens - trunk_tokens) / config.train.batch_tokens
    hours = seconds / 3600 * config.parallel.layout.world_size
    rate = machine.dollars_per_hour if price is None else price
    return Expected(
        memory_gib=said.memory_gib["total"],
        capacity_gib=capacity_gib(said.job),
        step_seconds=said.step_seconds,
        seconds=seconds,
        device_hours=hours,
        dollars=None if rate is None else rate * hours,
    )


def checkpoint_seconds(config: Config, expected: Expected) -> float:
    """Predicted time between two checkpoints."""
    return expected.step_seconds * -(-config.checkpoint_every_tokens // config.train.batch_tokens)
