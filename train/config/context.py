"""How ranks share a sequence, as a run's configuration has it. Imports no torch."""

from parallel.context.names import Method
from train.config.sections import Config


def context_method(config: Config) -> tuple[Method, str]:
    """What the ranks of a sequence exchange, and where that comes from, for people."""
    method = config.parallel.context_method
    return (method, f"parallel.context_method={method}") if method != "auto" else _choose(config)


def _choose(config: Config) -> tuple[Method, str]:
    """What `auto` comes to, and why: queries and results must weigh less than keys and values, and need links of their own."""
    heads, kv_heads, topology = config.model.num_heads, config.model.num_kv_heads, config.parallel.context_topology
    method: Method = "token_ring" if heads <= 2 * kv_heads and topology == "mesh" else "ring"
    return method, f"auto: {heads} query and {kv_heads} key/value heads on a {topology}"
