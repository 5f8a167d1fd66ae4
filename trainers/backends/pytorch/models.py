"""The networks: policy, critic and frozen reference, made from one Hugging Face model.

Legend: S samples of a pass, L longest input, a response tokens of the pass, H hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.initialization import no_init_weights

from rlserve.errors import ModelError
from rlserve.trainers.backends.base import PolicyOutputs
from rlserve.trainers.backends.pytorch.head import Autocast, ExactLogProbs, Loss, OutputHead
from rlserve.trainers.backends.pytorch.native_policy import NativePolicy
from rlserve.trainers.backends.pytorch.packed.prefixes import PackedInputs
from rlserve.trainers.backends.pytorch.shards import PassInputs, ShardInputs

SUPPORTED_ARCHITECTURES = (
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "MistralForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Qwen3MoeForCausalLM",
)
"""Those whose logits are the output head applied to the last hidden state, and then at most capped."""


class Critic(nn.Module):
    """A backbone like the policy's, with a value head in place of the vocabulary."""

    def __init__(self, backbone: nn.Module, hidden_size: int, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.value_head = new_value_head(hidden_size, seed)


def new_value_head(hidden_size: int, seed: int) -> nn.Linear:
    """From a hidden state to a value."""
    head = nn.Linear(hidden_size, 1)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(0.0, 1.0 / (hidden_size + 1), generator=generator)
        head.bias.zero_()
    return head


def create_critic(
    policy: Any, *, seed: int, model_path: str | None, copied: Callable[[Any], Any] = copy.deepcopy
) -> Critic:
    """A critic beside this policy: like its backbone, made by ``copied``, with a head by ``seed``; or a reward model.

    Args:
        model_path: the reward model, a sequence classifier with one label; None takes the policy.

    Raises:
        ModelError: the path is no such model, or its backbone is not of the policy's shape.
    """
    hidden_size = policy.config.hidden_size
    if model_path is None:
        return Critic(copied(policy.base_model), hidden_size, seed).eval()
    try:
        classifier, report = AutoModelForSequenceClassification.from_pretrained(
            model_path,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            **_experts_options(policy.config),
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{model_path!r} is no reward model that a critic can begin as: {error}") from error
    if report["missing_keys"] or classifier.config.num_labels != 1:
        lacking = f"lacks {sorted(report['missing_keys'])[0]}" if report["missing_keys"] else "has no single label"
        raise ModelError(f"{model_path!r} is no reward model that a critic can begin as: it {lacking}")
    backbone = classifier.base_model
    own, wanted = (
        {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        for module in (backbone, policy.base_model)
    )
    if own != wanted:
        odd = sorted(name for name in own.keys() | wanted.keys() if own.get(name) != wanted.get(name))[0]
        raise ModelError(
            f"{model_path!r} is not of the policy's shape: {odd} is {own.get(odd, 'not there')} in it and "
            f"{wanted.get(odd, 'not there')} in the policy; train the reward model from the policy's own, or leave "
            "trainer.critic_model_path out"
        )
    critic = Critic(backbone, hidden_size, seed)
    with torch.no_grad():
        critic.value_head.weight.copy_(classifier.score.weight)
    return critic.eval()


def load_policy(model_path: str, *, load_weights: bool) -> Any:
    """The causal language model of a Hugging Face folder or hub name, in float32, dropout off.

    Args:
        load_weights: False builds the model alone, for a rank that receives its weights from another.

    Raises:
        ModelError: the path is no model, the architecture is not supported, or weights are missing.
    """
    config, architecture = read_config(model_path)
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise ModelError(
            f"{model_path!r} has architecture {architecture}, which cannot be trained; "
            f"supported: {', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    options = _experts_options(config)
    if not load_weights:
        with no_init_weights():
            policy = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **options)
        policy.tie_weights()  # part of the initialisation that was left out
        return policy.eval()
    try:
        policy, report = AutoModelForCausalLM.from_pretrained(
            model_path, dtype=torch.float32, trust_remote_code=False, output_loading_info=True, **options
        )
    except OSError as error:
        raise ModelError(f"{model_path!r} is no model that can be trained: {error}") from error
    check_complete(model_path, report)
    return policy.eval()


def read_config(model_path: str) -> tuple[Any, str]:
    """A model's configuration, and the architecture that it names.

    Raises:
        ModelError: the path is no model.
    """
    try:
        config = AutoConfig.from_pretrained(model_path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{model_path!r} is no model that can be trained: {error}") from error
    return config, (config.architectures or ["none named"])[0]


def check_complete(model_path: str, report: Mapping[str, Any], *, new: Set[str] = frozenset()) -> None:
    """Raise ``ModelError`` where transformers' report of loading a model says that weights were missing, other than
    those that are ``new``."""
    missing = set(report["missing_keys"]) - new
    if unfit := sorted({*missing, *(str(name) for name in report["mismatched_keys"])}):
        raise ModelError(f"{model_path!r} lacks weights that its config.json asks for, such as {unfit[0]}")


def _experts_options(config: Any) -> dict[str, str]:
    """Grouped products need rows of a multiple of 16 bytes; experts of other sizes are computed one after another."""
    sizes = (config.hidden_size, getattr(config, "moe_intermediate_size", 0))
    return {"experts_implementation": "eager"} if sizes[1] and any(size % 4 for size in sizes) else {}


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """What the policy learns from a pass."""

    of_rows: Loss
    """Of some of the pass's response tokens; it is asked for all of them, in parts."""
    with_entropy: bool = False
    """Whether it looks at entropies."""
    at_once: bool = False
    """Ask for all tokens together."""


def policy_backward(
    policy: Any,
    inputs: PassInputs,
    loss: PolicyLoss,
    *,
    temperature: float,
    autocast: Autocast,
    native: NativePolicy | None = None,
    states_aH: Tensor | None = None,
    gradient_aH: Tensor | None = None,
) -> PolicyOutputs:
    """Run the policy over a pass and back: add the gradient of ``loss`` to the parameters' own.

    Args:
        native: the same policy computed as the engine does. Log-probabilities are then those that it gives, to the
            bit, and their gradient is that of the same function computed by PyTorch.
        states_aH: the pass's last hidden states, where they are there already.
        gradient_aH: what else goes back through these states.

    Returns:
        what the policy says about the response tokens, each [a] float32, without gradient.
    """
    exact = None
    if native is not None:
        assert isinstance(inputs, ShardInputs)
        log_probs, raw_log_probs = native.log_probs(inputs, temperature)
        exact = ExactLogProbs(log_probs=log_probs, raw_log_probs=raw_log_probs)
    if states_aH is None:
        with autocast():
            states_aH = response_states(policy.base_model, inputs)
    return OutputHead(policy, temperature).backward(
        states_aH,
        inputs.targets,
        loss.of_rows,
        with_entropy=loss.with_entropy,
        autocast=autocast,
        exact=exact,
        at_once=loss.at_once,
        gradient_aH=gradient_aH,
    )


def policy_outputs(
    policy: Any,
    inputs: PassInputs,
    *,
    temperature: float,
    native: NativePolicy | None = None,
    with_entropy: bool = False,
    states_aH: Tensor | None = None,
) -> PolicyOutputs:
    """What the policy says about the response tokens, for where no gradient is wanted. ``native`` gives its
    log-probabilities alone; ``states_aH`` are its last hidden states, where they are there already."""
    outputs = None
    if native is None or with_entropy:
        if states_aH is None:
            states_aH = response_states(policy.base_model, inputs)
        outputs = OutputHead(policy, temperature).outputs(states_aH, inputs.targets, with_entropy=with_entropy)
    if native is None:
        assert outputs is not None
        return outputs
    assert isinstance(inputs, ShardInputs)
    log_probs, raw_log_probs = native.log_probs(inputs, temperature)
    entropies = None if outputs is None else outputs.entropies
    return PolicyOutputs(log_probs=log_probs, raw_log_probs=raw_log_probs, entropies=entropies)


def checkpoint_weights(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A policy's parameters under the names of a checkpoint: transformers keeps the experts of a layer in one
    tensor [experts, rows, columns], and its checkpoints have a matrix for each. Views, not copies."""
    weights: dict[str, Tensor] = {}
    for name, tensor in parameters.items():
        prefix, stacked, part = name.rpartition(".experts.")
        if not stacked:
            weights[name] = tensor
            continue
        for expert, matrix in enumerate(tensor):
            if part == "gate_up_proj":
                gate, up = matrix.chunk(2)
                weights[f"{prefix}.experts.{expert}.gate_proj.weight"] = gate
                weights[f"{prefix}.experts.{expert}.up_proj.weight"] = up
            else:
                weights[f"{prefix}.experts.{expert}.{part}.weight"] = matrix
    return weights


def response_values(network: Any, inputs: PassInputs) -> Tensor:
    """[a] what a critic, or a model that scores, says of the state before each response token."""
    is_critic = hasattr(network, "value_head")
    backbone, head = (network.backbone, network.value_head) if is_critic else (network.base_model, network.score)
    return values_of(head, response_states(backbone, inputs))


def values_of(head: nn.Module, states_aH: Tensor) -> Tensor:
    """[a] float32: what a head of one output says of some states."""
    values: Tensor = head(states_aH).float().squeeze(-1)
    return values


def response_states(backbone: Any, inputs: PassInputs) -> Tensor:
    """[a, H] the last hidden states that predict response tokens. No attention mask: causal attention alone
    keeps real tokens from the padding behind them."""
    if isinstance(inputs, PackedInputs):
        packed_states: Tensor = backbone.packed_decoder.states(inputs)
        return packed_states
    hidden_SLH = backbone(input_ids=inputs.input_ids, use_cache=False).last_hidden_state
    states: Tensor = hidden_SLH.flatten(0, 1)[inputs.states]
    return states
