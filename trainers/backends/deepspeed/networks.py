"""The networks as modules of which one call is one pass, since ZeRO follows the calls of modules.

Legend: S samples of a pass, L longest input, a response tokens of the pass, H hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlserve.trainers.backends.base import CRITIC, POLICY, Networks, PolicyOutputs
from rlserve.trainers.backends.config import DeepSpeedTrainerConfig
from rlserve.trainers.backends.deepspeed.head import HeadOptions, response_log_probs
from rlserve.trainers.backends.deepspeed.layout import REFERENCE
from rlserve.trainers.backends.pytorch.adapters import add_adapters, freeze, sharing_copy
from rlserve.trainers.backends.pytorch.models import (
    Critic,
    create_critic,
    load_policy,
    response_states,
    response_values,
    values_of,
)
from rlserve.trainers.backends.pytorch.shards import ShardInputs
from rlserve.trainers.backends.pytorch.shared_trunk import SharedTrunkCritic


class PolicyPass(nn.Module):
    """Of the policy, or of the reference."""

    def __init__(self, policy: Any, temperature: float, critic: SharedTrunkCritic | None = None) -> None:
        """``critic`` is one on the policy's trunk, whose values ``forward`` gives too."""
        super().__init__()
        self.policy = policy
        self.critic = critic
        self._temperature = temperature

    @property
    def head_weight(self) -> Tensor:
        """[V, H] of the output head, which this module uses beside the head's own."""
        weight: Tensor = self.policy.get_output_embeddings().weight
        return weight

    def forward(
        self, inputs: ShardInputs, with_entropy: bool = False, values_alone: bool = False
    ) -> tuple[Tensor | None, ...]:
        """The three of ``PolicyOutputs`` and the critic's values, each [a]; with ``values_alone`` the others are
        None."""
        states_aH = response_states(self.policy.base_model, inputs)
        values_a = None if self.critic is None else values_of(self.critic.value_head, states_aH)
        if values_alone:
            return None, None, None, values_a
        options = HeadOptions(
            temperature=self._temperature,
            cap=getattr(self.policy.config, "final_logit_softcapping", None),
            with_entropy=with_entropy,
        )
        return *response_log_probs(states_aH, self.head_weight, inputs.targets, options), values_a


class CriticPass(nn.Module):
    """Of the critic."""

    def __init__(self, critic: Critic) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, inputs: ShardInputs) -> Tensor:
        """[a] values of the states before (or after) the response tokens."""
        return response_values(self.critic, inputs)


def values_of_pass(module: nn.Module, inputs: ShardInputs) -> Tensor:
    """[a] what a critic says, by itself or on the policy's trunk, of a pass of which nothing else is wanted."""
    values: Tensor = module(inputs, values_alone=True)[-1] if isinstance(module, PolicyPass) else module(inputs)
    return values


def policy_outputs(found: tuple[Tensor | None, ...]) -> PolicyOutputs:
    """What ``PolicyPass`` returned of the policy, by name."""
    log_probs, raw_log_probs, entropies, _ = found
    assert log_probs is not None
    assert raw_log_probs is not None
    return PolicyOutputs(log_probs=log_probs, raw_log_probs=raw_log_probs, entropies=entropies)


def create_networks(
    config: DeepSpeedTrainerConfig, networks: Networks, *, model_path: str, seed: int, load_weights: bool
) -> dict[str, Any]:
    """Policy and, where the algorithm needs them, critic and reference by name, in host memory.

    Args:
        load_weights: False builds them with any content. With LoRA the frozen base is loaded all the same.

    Raises:
        ModelError: ``model_path`` is no model, or one that is not supported.
        UserError: LoRA's modules are not in the model.
    """
    lora = config.lora
    copied: Callable[[Any], Any] = sharing_copy if lora.is_on else copy.deepcopy
    policy = load_policy(model_path, load_weights=load_weights or lora.is_on)
    if lora.is_on:
        freeze(policy)
    found = {POLICY: policy}
    if networks.critic and config.shares_trunk:
        found[CRITIC] = SharedTrunkCritic(policy.config.hidden_size, seed)
    elif networks.critic:
        critic_path = config.critic_model_path if load_weights else None
        found[CRITIC] = create_critic(policy, seed=seed, model_path=critic_path, copied=copied)
    if networks.reference:
        found[REFERENCE] = copied(policy)
    own_backbone = getattr(found.get(CRITIC), "backbone", None)
    for network in (policy, own_backbone):
        if network is not None and lora.is_on:
            add_adapters(network, lora, seed)
        if network is not None and config.activation_checkpointing:
            _checkpoint_activations(network)
    return found


def skeleton_of(policy: Any) -> Any:
    """A model of the same class and configuration, without memory for parameters."""
    with torch.device("meta"):
        skeleton = type(policy)(copy.deepcopy(policy.config))
    skeleton.generation_config = copy.deepcopy(policy.generation_config)
    return skeleton


def as_passes(networks: Mapping[str, Any], *, temperature: float) -> dict[tuple[str, ...], nn.Module]:
    """The same networks, one call a pass: those that share a trunk in one."""
    critic = networks.get(CRITIC)
    if isinstance(critic, SharedTrunkCritic):
        passes: dict[tuple[str, ...], nn.Module] = {(POLICY, CRITIC): PolicyPass(networks[POLICY], temperature, critic)}
    else:
        passes = {(POLICY,): PolicyPass(networks[POLICY], temperature)}
        if critic is not None:
            passes[CRITIC,] = CriticPass(critic)
    if REFERENCE in networks:
        passes[REFERENCE,] = PolicyPass(networks[REFERENCE], temperature)
    return passes


def _checkpoint_activations(network: Any) -> None:
    network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # Only layers that are in training do it. Nothing else of them depends on that, dropout being off.
    for module in network.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True


def move_buffers(module: nn.Module, device: torch.device) -> None:
    """To a device; parameters stay where they are."""
    for each in module.modules():
        for name, buffer in each.named_buffers(recurse=False):
            each._buffers[name] = buffer.to(device)
