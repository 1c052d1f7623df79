"""The optimizer and its parameter groups."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from parallel.engine.protocol import Optimizer
from quant.method import Treatment
from train.build.quantization import method_of
from train.config import Config
from train.config.sections.optimizer import AdamConfig, AdamWConfig, MuonConfig
from train.model.initialize import is_inner_matrix

Group = dict[str, Any]


def build_optimizer(config: Config, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
    """AdamW, or Muon for the matrices of the blocks and AdamW for the rest. Matrices have weight decay; norms, the embedding
    table and the parameters of a low-precision method have none.

    Before every step the engine sets each group's learning rate to the schedule's times `lr_scale`. Under muP, `lr_scale` is
    the base width over the hidden size for the matrices of the blocks (Shen et al., arXiv 2408.13359, table 1), else 1.
    """
    inner: list[nn.Parameter] = []
    head: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    method, width = method_of(config.quant), config.mup_width or 1.0
    added: dict[Treatment, list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if method is not None and method.owns(name):
            lr_scale = 1 / width if is_inner_matrix(method.weight_of(name)) else 1.0
            added.setdefault(method.treatment(name, lr_scale), []).append(parameter)
            continue
        kind = plain if parameter.dim() < 2 or name.startswith("embedding.") else inner if is_inner_matrix(name) else head
        kind.append(parameter)
    optimizer, decay = config.optimizer, config.optimizer.weight_decay
    rest: list[Group] = [
        {"params": head, "weight_decay": decay, "lr_scale": 1.0},
        {"params": plain, "weight_decay": 0.0, "lr_scale": 1.0},
        *({"params": group, "weight_decay": 0.0, **asdict(treatment)} for treatment, group in added.items()),
    ]
    if isinstance(optimizer, AdamWConfig):
        return _adamw(optimizer, [{"params": inner, "weight_decay": decay, "lr_scale": 1 / width}, *rest])
    return MuonWithAdamW(_muon(optimizer, inner), _adamw(optimizer, rest))


def _left_alone(kind: type[torch.optim.Optimizer]) -> Any:
    """A torch optimizer without the wrappers that import torch's compiler, a second of a start, to ask it to leave them alone.

    Nothing here compiles an optimizer.
    """
    methods = {name: method for name, method in vars(torch.optim.Optimizer).items() if inspect.isfunction(method)}
    plain = {name: inspect.unwrap(method) for name, method in methods.items() if hasattr(method, "__wrapped__")}
    return type(kind.__name__, (kind,), plain | {"step": torch.no_grad()(inspect.unwrap(kind.step))})


def _adamw(config: AdamConfig, groups: list[Group]) -> torch.optim.AdamW:
    optimizer: torch.optim.AdamW = _left_alone(torch.optim.AdamW)(
        [group for group in groups if group["params"]],
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
    if any(group.get("penalty") for group in optimizer.param_groups):
        optimizer.register_step_pre_hook(_add_penalties)
    if any(group.get("bounds") for group in optimizer.param_groups):
        optimizer.register_step_post_hook(_keep_in_bounds)
    return optimizer


@torch.no_grad()
def _add_penalties(optimizer: torch.optim.Optimizer, *step_arguments: Any) -> None:
    """Add the gradient of `Treatment.penalty` x mean, once per step, when gradients are complete and clipped."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("penalty") else ():
            if parameter.grad is not None:
                parameter.grad.add_(group["penalty"] / parameter.numel())


@torch.no_grad()
def _keep_in_bounds(optimizer: torch.optim.Optimizer, *step_arguments: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("bounds") else ():
            parameter.clamp_(*group["bounds"])


def _muon(config: MuonConfig, matrices: list[nn.Parameter]) -> torch.optim.Muon:
    """torch's Muon, its updates scaled to the usual size of AdamW's, so that both use the same learning rate and weight decay:
    0.2 sqrt(max(rows, columns)) times the orthogonalised momentum (Liu et al., arXiv 2502.16982, eq. 4)."""
    muon: torch.optim.Muon = _left_alone(torch.optim.Muon)(
        [{"params": matrices, "lr_scale": 1.0}],
        lr=0.0,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        nesterov=config.nesterov,
        ns_steps=config.iterations,
        adjust_lr_fn="match_rms_adamw",
    )
    return muon


class MuonWithAdamW:
    """Two optimizers that step together. As with fused AdamW, a step whose gradient is not finite changes nothing."""

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer) -> None:
        self.both = (muon, adamw)
        self.param_groups = [group for optimizer in self.both for group in optimizer.param_groups]
        self.found_inf: Tensor | None = None

    @property
    def state(self) -> Mapping[Tensor, dict[str, Tensor]]:
        """The moments of every parameter, of both optimizers."""
        return {parameter: moments for optimizer in self.both for parameter, moments in optimizer.state.items()}

    def step(self) -> None:
        """Step both, unless `found_inf` is set. Muon does not support `found_inf`, so the host must wait for its value."""
        if self.found_inf is None or not bool(self.found_inf):
            for optimizer in self.both:
                optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        for optimizer in self.both:
            optimizer.zero_grad(set_to_none)
