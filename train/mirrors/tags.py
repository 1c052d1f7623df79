"""The numbers of a line under the names that mirrors show."""

import dataclasses

from scaling.record import EvaluationLine, StepLine

_AXES = ("step", "tokens", "phase")


def values_of(line: StepLine | EvaluationLine) -> dict[str, float]:
    """What a line measured; what is not a number is left out."""
    if isinstance(line, StepLine):
        plain = {name: value for name, value in dataclasses.asdict(line).items() if name not in _AXES}
        return {f"train/{name}": float(value) for name, value in plain.items() if value is not None}
    of_sets = {f"validation/{name}": value for name, value in line.validation.items()}
    of_tasks = {f"error/{name}": value for name, value in line.errors.items()}
    return {name: float(value) for name, value in (of_sets | of_tasks).items() if value is not None}
