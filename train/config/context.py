"""How ranks share a sequence, as a run's configuration has it. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from train.config.sections import Config

Method = Literal["token_ring", "ring", "ring_bidirectional", "ulysses"]


@dataclass(frozen=True)
class ContextChoice:
    """A method of context parallelism, and which tokens each rank holds."""

    method: Method
    partition: Literal["contiguous", "zigzag"]
    why: str
    """where the method comes from, for people"""


def context_choice(config: Config) -> ContextChoice | None:
    """What the ranks of a sequence do; None where each rank has its own."""
    parallel = config.parallel
    if parallel.context == 1:
        return None
    if parallel.context_method != "auto":
        method, why = parallel.context_method, f"parallel.context_method={parallel.context_method}"
    else:
        method, why = _choose(config)
    # Ulysses attends to whole sequences, whoever holds what of them; the others are balanced by zigzag.
    return ContextChoice(method, "contiguous" if method == "ulysses" else "zigzag", why)


def _choose(config: Config) -> tuple[Method, str]:
    """What `auto` comes to, and why: queries and results weigh less than keys and values, and have links of their own."""
    heads, kv_heads, topology = config.model.num_heads, config.model.num_kv_heads, config.parallel.context_topology
    method: Method = "token_ring" if heads <= 2 * kv_heads and topology == "mesh" else "ring"
    return method, f"auto: {heads} query and {kv_heads} key/value heads on a {topology}"
