"""The cost model against closed forms, and what follows from it. Its messages are checked in test_volume.py."""

import dataclasses
import math

import pytest

from parallel.context.choose import ASSUMED, METHODS, AttentionCall, Machine, Step, choose, duration, seconds

CALL = AttentionCall(ranks=4, sequence=4096, heads=8, kv_heads=2, head_dim=64, batch=3, element_bytes=2)
LOCAL = CALL.batch * CALL.sequence / CALL.ranks
QUERY, KEY = LOCAL * CALL.heads * CALL.head_dim * 2, LOCAL * CALL.kv_heads * CALL.head_dim * 2
LSE = LOCAL * CALL.heads * 4
LINK = 1e9


def links(topology, **more) -> Machine:
    """A machine on which attention takes no time."""
    return Machine(topology, LINK, math.inf, **more)


@pytest.mark.parametrize(
    "method, topology, expected",
    [
        # (P - 1) 2 s Hkv e; both ways half of it, where each way has a link of its own.
        ("ring", "mesh", 3 * 2 * KEY),
        ("ring", "switch", 3 * 2 * KEY),
        ("ring_bidirectional", "mesh", 3 * KEY),
        ("ring_bidirectional", "switch", 3 * 2 * KEY),
        # P - 1 steps with queries, the first two without results; then two more with results, one after the last block.
        # Half-length messages help no one here: rank 1 always has whole queries to send, and each step waits for the slowest.
        ("token_ring", "mesh", 2 * QUERY + 3 * (QUERY + LSE)),
        ("token_ring", "switch", 3 * QUERY + 3 * (QUERY + LSE)),
        # (P - 1) / P s (2 Hq + 2 Hkv) e, with 2 key/value heads sent to 4 ranks; on a mesh all links are used at once.
        ("ulysses", "switch", 3 / 4 * (2 * QUERY + 2 * 2 * KEY)),
        ("ulysses", "mesh", 1 / 4 * (2 * QUERY + 2 * 2 * KEY)),
    ],
)
def test_transfers_alone_take_the_bytes_of_the_formulas(method, topology, expected):
    assert seconds(method, CALL, links(topology), backward=False) == pytest.approx(expected / LINK)


def test_gradients_of_a_ring_travel_in_fp32():
    """Forward 3 messages; backward keys in steps 0 to 2, gradients of twice the bytes in steps 2 to 4, together in step 2."""
    assert seconds("ring", CALL, links("mesh")) == pytest.approx((3 * 2 * KEY + 3 * 2 * KEY + 3 * 4 * KEY) / LINK)
    wide = dataclasses.replace(CALL, element_bytes=8)
    assert seconds("ring", wide, links("mesh")) == pytest.approx(4 * (3 * 2 * KEY + 3 * 2 * KEY + 3 * 2 * KEY) / LINK)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("causal, share", [(True, 0.5), (False, 1.0)])
def test_attention_alone_takes_the_flops_of_its_pairs(method, causal, share):
    """4 FLOPs for each pair, head and element, 2.5 times as many backward, shared by the ranks."""
    call = dataclasses.replace(CALL, causal=causal)
    flops = 4 * call.batch * call.heads * call.head_dim * call.sequence**2 * share / call.ranks
    found = seconds(method, call, Machine("switch", math.inf, 1e12), backward=False)
    if method == "ring_bidirectional" and causal:  # uneven steps, though all ranks have the same sum
        assert flops / 1e12 <= found < 1.15 * flops / 1e12
    else:
        assert found == pytest.approx(flops / 1e12)
    both = seconds(method, call, Machine("switch", math.inf, 1e12), backward=True)
    assert both == pytest.approx(3.5 * found)


def test_a_step_takes_the_longest_of_what_runs_at_once():
    machine = Machine("switch", 10.0, 100.0, latency=0.5)
    assert duration([Step([100.0, 0.0])], machine) == 1.0
    assert duration([Step([100.0, 0.0], [(0, 1, 20.0)])], machine) == 2.5
    assert duration([Step([0.0] * 3, [(0, 1, 20.0), (2, 1, 20.0)])], machine) == 4.5  # one port takes both in
    assert duration([Step([0.0] * 3, [(0, 1, 20.0), (2, 1, 20.0)])], dataclasses.replace(machine, topology="mesh")) == 2.5
    # Both directions at once; and a rank that has no part in a message does not wait for it.
    assert duration([Step([0.0] * 2, [(0, 1, 20.0), (1, 0, 20.0)])], machine) == 2.5
    assert duration([Step([0.0] * 3, [(0, 1, 20.0)]), Step([0.0, 0.0, 250.0])], machine) == 2.5


def test_which_method_for_what():
    slow_mesh, slow_switch = (Machine(topology, 1e9, 335e12) for topology in ("mesh", "switch"))
    odd = AttentionCall(ranks=8, sequence=32768, heads=12, kv_heads=12, head_dim=128)  # not for ulysses
    assert choose(odd, slow_mesh)[0] == "token_ring"
    assert choose(odd, slow_mesh, backward=False)[0] == "ring_bidirectional"
    assert choose(odd, slow_switch)[0] == "token_ring"
    grouped = dataclasses.replace(odd, kv_heads=3)
    assert choose(grouped, slow_mesh)[0] == "ring_bidirectional"
    assert choose(grouped, slow_switch)[0] in ("ring", "ring_bidirectional")
    assert choose(dataclasses.replace(odd, heads=32, kv_heads=32), slow_switch)[0] == "ulysses"
    # Where attention takes longest, nothing is to be sent before or after it.
    assert choose(dataclasses.replace(odd, sequence=2**22, kv_heads=3), ASSUMED["cuda"]["switch"])[0] == "ring"


def test_the_reason_names_times_and_what_is_impossible():
    call = AttentionCall(ranks=8, sequence=32768, heads=12, kv_heads=12, head_dim=128)
    method, reason = choose(call, Machine("switch", 50e9, 335e12))
    assert "\n" not in reason
    for word in (
        *(other for other in METHODS if other != method),
        "32,768 tokens",
        "switch",
        "50 GB/s",
        "12 query and 12 key/value heads do not divide among 8 ranks",
    ):
        assert word in reason
    assert "24 query and 12 key/value heads" in choose(dataclasses.replace(call, heads=24), Machine("mesh", 1e9, 1e12))[1]
    assert "single rank" in choose(dataclasses.replace(call, ranks=1), Machine("mesh", 1e9, 1e12))[1]
