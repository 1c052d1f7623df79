"""Where a decoder is cut into pipeline stages. Standard library only."""

from parallel.shape import ModelShape


def balanced_sizes(shape: ModelShape, sequence: int, num_stages: int) -> list[int]:
    """Layers of every stage, so that the costliest stage has as few FLOPs as possible.

    Layers and the head count; the embedding, a table look-up, has no FLOPs. Every stage has at least one layer.
    """
    assert 1 <= num_stages <= shape.num_layers
    layer, head = shape.layer_flops_per_token(sequence), shape.head_flops_per_token()
    # All layers cost the same, so the optimum is: the last stage has k layers and the head, the others share the rest evenly.
    best: tuple[float, int] | None = None
    if num_stages > 1:
        for last_layers in range(1, shape.num_layers - num_stages + 2):
            largest = -(-(shape.num_layers - last_layers) // (num_stages - 1)) * layer
            cost = max(largest, last_layers * layer + head)
            if best is None or cost < best[0] or (cost == best[0] and last_layers * layer + head <= largest):
                best = (cost, last_layers)
    return [shape.num_layers] if best is None else [*_even(shape.num_layers - best[1], num_stages - 1), best[1]]


def _even(total: int, parts: int) -> list[int]:
    return [total // parts + (index < total % parts) for index in range(parts)]
