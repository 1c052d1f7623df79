"""What the options of commands must be: every check of a number, of NAME=VALUE and of a file's kind stands here.

Checks return what they were given, as the command wants it, and raise `UserError` where it cannot be meant.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.bits import BITS
from common.errors import UserError

if TYPE_CHECKING:
    from scaling.laws.base.law import ObjectiveName

_MOST = 1e40  # of a count, FLOPs and seconds; what is more is a slip of the keyboard
_SHARES = ("--qat-fraction", "--ladder-share")


def numbers(given: Mapping[str, float | None]) -> dict[str, float]:
    """Numbers by option; those that are None were not given and are left out. All must be above 0, shares below 1."""
    typed = {option: value for option, value in given.items() if value is not None}
    for option, value in typed.items():
        if not value > 0:
            raise UserError(f"{option} {value:g} must be above 0" + (" and below 1" if option in _SHARES else ""))
        if option in _SHARES and not value < 1:
            raise UserError(f"{option} {value:g} is a share of the whole: it must be below 1")
        if value > _MOST:
            raise UserError(f"{option} {value:g} is too large; type a number such as 1e21")
    return typed


def named_numbers(words: Sequence[str] | None, option: str) -> dict[str, float]:
    """NAME=VALUE words, each name once."""
    values: dict[str, float] = {}
    for word in words or []:
        name, _, value = (part.strip() for part in word.partition("="))
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not name or not math.isfinite(number):
            raise UserError(f"{option} {word!r} is not NAME=VALUE with a number, such as {option} E=1.7")
        if name in values:
            raise UserError(f"{option} {name}={values[name]:g} and {option} {word} contradict each other: leave one out")
        values[name] = number
    return values


def names(text: str | None, option: str) -> tuple[str, ...]:
    """A list of columns, A,B,..."""
    if text is None:
        return ()
    chosen = tuple(word.strip() for word in text.split(",") if word.strip())
    if not chosen:
        raise UserError(f"{option} {text!r} names no column; type {option} parameters,tokens")
    return chosen


def draws(count: int, *, none_allowed: bool) -> int:
    """How many refits for intervals: as many as a 95 % interval needs, or none where that is a choice."""
    from scaling.fit.intervals import FEWEST_DRAWS

    if count < FEWEST_DRAWS and not (none_allowed and count == 0):
        none = " (0: no intervals)" if none_allowed else ""
        raise UserError(f"--bootstrap {count}: a 95 % interval needs {FEWEST_DRAWS} draws or more; type --bootstrap 1000{none}")
    return count


def budget(flops: float | None, gpu_hours: float | None, per_second: float | None) -> float:
    """The training budget in FLOPs."""
    numbers({"--flops": flops, "--gpu-hours": gpu_hours, "--flops-per-gpu-second": per_second})
    if (flops is None) == (gpu_hours is None):
        raise UserError("give the budget as --flops C, or as --gpu-hours H --flops-per-gpu-second F")
    if flops is not None:
        if per_second is not None:
            raise UserError("--flops-per-gpu-second goes with --gpu-hours; --flops says the budget already")
        return flops
    if gpu_hours is None or per_second is None:
        raise UserError("--gpu-hours needs --flops-per-gpu-second: peak FLOP/s times the MFU you reach, such as 4e14")
    return gpu_hours * 3600.0 * per_second


def widths(text: str | None) -> tuple[float, ...]:
    """--bits: widths that the trainer has."""
    try:
        chosen = tuple(sorted({float(word) for word in text.split(",")})) if text else ()
    except ValueError:
        raise UserError(f"--bits {text!r} is no list of numbers, such as 2,4,6") from None
    for width in chosen:
        if width not in BITS:
            raise UserError(f"--bits {text}: training has no {width:g} bits; it has {', '.join(f'{bits:g}' for bits in BITS)}")
    return chosen


def objective(name: str | None) -> "ObjectiveName | None":
    """--objective: one of the two."""
    known: tuple[ObjectiveName, ...] = ("huber-log", "least-squares")
    if name is not None and name not in known:
        raise UserError(f"--objective {name}: choose {' or '.join(known)}")
    return next((one for one in known if one == name), None)


def delta(value: float | None, objective: str) -> float | None:
    """--delta: above 0, for the objective that has one."""
    numbers({"--delta": value})
    if value is not None and objective != "huber-log":
        raise UserError(f"--delta {value:g}: {objective} has none; add --objective huber-log, or leave it out")
    return value


def noise_kind(name: str) -> str:
    """--noise-kind: one that simulations know."""
    from scaling.fit.simulate import NOISES

    if name not in NOISES:
        raise UserError(f"--noise-kind {name}: choose {', '.join(NOISES)}")
    return name


def file_of_kind(out: Path | None, *kinds: str) -> Path | None:
    """--out: a file whose name says what is written into it."""
    if out is not None and out.suffix.lower() not in kinds:
        raise UserError(f"--out {out}: the name must end in {' or '.join(kinds)}; type --out {out.with_suffix(kinds[0])}")
    return out
