"""Which fit answers which question of a plan, and whether a plan can be made from it."""

from collections.abc import Sequence

from common.errors import UserError
from scaling.fit.result import Fit
from scaling.laws import LAWS
from scaling.laws.base.columns import one_ratio
from scaling.laws.base.law import QUANTIZATION, SIZE, Law


def by_role(fits: Sequence[Fit]) -> dict[str, Fit]:
    """The fits by the question they answer (`Law.role`).

    Raises:
        UserError: a fit answers none, two answer the same, none gives the size, or one's runs cannot separate size from tokens.
    """
    roles: dict[str, Fit] = {}
    for fit in fits:
        role = fit.law.role
        if role is None:
            raise UserError(f"plan has no use for a fit of {fit.law.name}: leave it out")
        if role in roles:
            raise UserError(f"{roles[role].law.name} and {fit.law.name} both give {role}: leave one out")
        roles[role] = fit
    if not any(_says_the_size(fit.law) for fit in fits):
        names = ", ".join(fit.law.name for fit in fits)
        *others, last = (law.name for law in LAWS.values() if _says_the_size(law))
        raise UserError(f"no plan follows from {names} alone: add a fit of {', '.join(others)} or {last}")
    for role in (SIZE, QUANTIZATION):
        if role in roles:
            _require_identified(roles[role])
    return roles


def loss_laws(role: str) -> str:
    """The names of the laws that answer a question of a plan by the loss, for a message."""
    return " or ".join(law.name for law in LAWS.values() if law.role == role and law.target == "loss")


def _says_the_size(law: Law) -> bool:
    return law.role == SIZE or (law.role == QUANTIZATION and law.target == "loss")


def _require_identified(fit: Fit) -> None:
    unknown = fit.unknown_parameters()
    ratio = fit.runs["tokens_per_parameter"].to_numpy() if "tokens_per_parameter" in fit.runs.columns else None
    single = one_ratio({"tokens_per_parameter": ratio}) if ratio is not None and fit.law.target == "loss" else []
    if unknown or single or len(fit.runs) < len(fit.free):
        why = single[0] if single else f"its runs do not determine {', '.join(unknown or fit.law.names)}"
        raise UserError(f"no plan from this {fit.law.name} fit: {why}\nIt needs {fit.law.needs or 'runs that differ more'}")
