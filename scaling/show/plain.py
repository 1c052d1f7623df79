"""Plans and simulations as plain data, for JSON."""

import dataclasses
from typing import Any

from scaling.fit.simulate import Simulation
from scaling.plan.choice import Choice, Plan, most_parameters
from scaling.plan.train_command import words_for


def plan_plain(plan: Plan) -> dict[str, Any]:
    """A plan as plain data, with overrides for every run it proposes."""
    low, high = plan.parameters_range or (None, None)
    return {
        "flops": plan.budget.flops,
        "inference_tokens": plan.budget.served,
        "optimum": _choice_plain(plan.optimum, plan, "planned") | {"parameters_low": low, "parameters_high": high},
        "near": None if plan.near is None else _choice_plain(plan.near, plan, "planned-near"),
        "alternatives": [_choice_plain(choice, plan, _name(choice)) for choice in plan.alternatives],
        "bits": [_choice_plain(choice, plan, f"planned-{choice.bits:g}-bit") for choice in plan.widths],
        "ladder": {
            "runs": [_choice_plain(run, plan, run.name) for run in plan.ladder],
            "before": plan.ladder_before,
            "after": plan.ladder_after,
            "none": plan.no_ladder,
        },
        "doubts": list(plan.doubts),
        "warnings": list(plan.warnings),
    }


def _name(choice: Choice) -> str:
    return "planned-" + choice.name.replace(" ", "-").replace(".", "_")


def _choice_plain(choice: Choice, plan: Plan, name: str) -> dict[str, Any]:
    words = words_for(
        plan.context,
        choice.parameters,
        choice.tokens,
        name=name,
        most=most_parameters(plan.memory_gib, choice.bits),
        batch_tokens=plan.batch_tokens,
        learning_rate=choice.learning_rate,
        bits=choice.bits,
        qat_fraction=choice.qat_fraction,
    )
    plain = {key: value for key, value in dataclasses.asdict(choice).items() if value is not None}
    return plain | {"flops": choice.flops, "tokens_per_parameter": choice.tokens / choice.parameters, "overrides": words}


def simulation_plain(simulation: Simulation) -> dict[str, Any]:
    """A simulation as plain data."""
    plain = {
        key: value for key, value in vars(simulation).items() if key not in ("law", "coverage", "law_coverage", "run_coverage")
    }
    return {
        "law": simulation.law.name,
        "coverage": {
            "parameters": dict(simulation.coverage),
            "forecast": {"law": simulation.law_coverage, "run": simulation.run_coverage},
        },
        **plain,
    }


def spreadsheet_cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: a quote stands before a text with =, +, - or @ that is no number."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        try:
            float(value)
        except ValueError:
            return f"'{value}"
    return value
