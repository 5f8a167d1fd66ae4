"""AdamW on the flat vector: one learning rate and one clipped norm for each network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rlserve.trainers.backends.base import CRITIC, POLICY
from rlserve.trainers.backends.config import TorchTrainerConfig
from rlserve.trainers.backends.pytorch.parameters import FlatParameters


class FlatAdamW:
    """AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101), with linear warm-up and clipping by norm per segment.

    Every rank holds all of it and applies the same update to the same bits, so the loss of any rank loses nothing.
    """

    def __init__(self, config: TorchTrainerConfig, flat: FlatParameters) -> None:
        self._config = config
        self._flat = flat
        self.first_moment = torch.zeros_like(flat.vector)
        self.second_moment = torch.zeros_like(flat.vector)
        self.num_updates = 0
        rates = {POLICY: config.learning_rate, CRITIC: config.critic_learning_rate}
        self._learning_rates = {name: rates[name] for name in flat.segments}
        self._segments = {name: nn.Parameter(flat.vector[where]) for name, where in flat.segments.items()}
        self._adamw = torch.optim.AdamW(
            [{"params": [segment], "name": name} for name, segment in self._segments.items()],
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=0.0,
            fused=True,
        )
        # Norms and biases are the vectors among the parameters. Decay comes before the update, so it can be apart.
        self._decayed = {
            name: [
                view
                for view in flat.views(name, flat.vector).values()
                if view.ndim > 1 or config.decay_norms_and_biases
            ]
            for name in flat.segments
        }

    def learning_rates(self) -> dict[str, float]:
        """Those of the next update: rising linearly over ``num_warmup_steps`` updates."""
        share = min(1.0, (self.num_updates + 1) / max(1, self._config.num_warmup_steps))
        return {name: rate * share for name, rate in self._learning_rates.items()}

    def gradient_norms(self, gradient: Tensor) -> dict[str, float]:
        """Euclidean norm per segment, before clipping."""
        return {name: float(torch.linalg.vector_norm(gradient[where])) for name, where in self._flat.segments.items()}

    def update(self, gradient: Tensor, norms: Mapping[str, float]) -> None:
        """Clip ``gradient`` [N] in place by its ``norms`` and apply it."""
        rates = self.learning_rates()
        for group in self._adamw.param_groups:
            name, where = group["name"], self._flat.segments[group["name"]]
            group["lr"] = rates[name]
            gradient[where].mul_(min(1.0, self._config.max_grad_norm / (norms[name] + 1e-6)))
            segment = self._segments[name]
            segment.grad = gradient[where]
            # Our own flat moments, so that snapshots and broadcasts need not know torch's optimizer.
            self._adamw.state[segment] = {
                "step": torch.tensor(float(self.num_updates), device=gradient.device),
                "exp_avg": self.first_moment[where],
                "exp_avg_sq": self.second_moment[where],
            }
            if self._config.weight_decay > 0:
                torch._foreach_mul_(self._decayed[name], 1.0 - rates[name] * self._config.weight_decay)
        self._adamw.step()
        self._adamw.zero_grad()
        self.num_updates += 1
