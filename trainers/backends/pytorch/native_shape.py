"""What the compiled decoder must know of a policy, read from its transformers modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rlserve.errors import UserError
from rlserve.native.library import NativeBuildError, load_library

_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True, kw_only=True)
class NativeShape:
    """A ``DecoderShape``, and what attention must know."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    norm_offset: float
    activation: str
    embedding_scale: float
    logits_softcap: float
    update_norms: bool
    """What attention and MLP give is normalised before it is added to the residual."""
    query_key_norm: bool
    score_scale: float
    attention_softcap: float
    rotations: Mapping[str, tuple[Tensor, float]]
    """Frequencies, and the factor of cosines and sines, of each kind of rotary positions."""
    layers: tuple[tuple[int, str], ...]
    """Of each layer: how many tokens back attention reaches, itself included, 0 for all; and its kind of rotation."""

    @property
    def query_size(self) -> int:
        """Columns of the query projection."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Columns of the key projection, and of the value projection."""
        return self.num_kv_heads * self.head_dim


def check_supported(policy: Any, device_type: str) -> None:
    """Check that the engine's kernels can compute the policy here.

    Raises:
        UserError: they cannot; the message names the setting ``trainer.deterministic``.
    """
    if problem := problem_of_kernels(policy, device_type):
        raise UserError(f"trainer.deterministic=true {problem}; set it to false")


def problem_of_kernels(policy: Any, device_type: str) -> str | None:
    """Why the compiled kernels cannot compute the policy here, to be read after the setting that asks for them; None if
    they can."""
    if device_type != "cpu":
        return f"is only for device=cpu, and this trainer computes on {device_type}"
    experts = [index for index, layer in enumerate(policy.base_model.layers) if not hasattr(layer.mlp, "gate_proj")]
    if experts:
        return f"is only for models without experts, and layer {experts[0]} of this {type(policy).__name__} has some"
    activation = _activation(policy.config)
    if activation not in _ACTIVATIONS:
        return f"needs an activation of {' or '.join(_ACTIVATIONS)}, and this model has {activation!r}"
    if "longrope" in str(policy.base_model.rotary_emb.rope_type):
        return "is not for models with rope type 'longrope', whose rotation hangs on the length"
    head_dim = policy.base_model.layers[0].self_attn.head_dim
    if any(
        2 * len(frequencies_F) != head_dim for frequencies_F, _ in _rotations(policy.base_model.rotary_emb).values()
    ):
        return "needs rotary positions in all of a head"
    try:
        load_library()
    except NativeBuildError as error:
        return f"needs the compiled CPU kernels: {error}"
    return None


def read_shape(policy: Any) -> NativeShape:
    """The shape of a policy that ``check_supported`` lets pass."""
    config, backbone = policy.config, policy.base_model
    layer = backbone.layers[0]
    attention, input_norm = layer.self_attn, layer.input_layernorm
    # Gemma alone has these norms, and it alone keeps the weights of all norms less 1.
    is_gemma = hasattr(layer, "pre_feedforward_layernorm")
    embeddings = policy.get_input_embeddings()
    return NativeShape(
        vocab_size=embeddings.weight.shape[0],
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=attention.q_proj.out_features // attention.head_dim,
        num_kv_heads=attention.k_proj.out_features // attention.head_dim,
        head_dim=attention.head_dim,
        rms_norm_eps=input_norm.eps if is_gemma else input_norm.variance_epsilon,
        norm_offset=1.0 if is_gemma else 0.0,
        activation=_ACTIVATIONS[_activation(config)],
        embedding_scale=float(embeddings.embed_scale) if is_gemma else 1.0,
        logits_softcap=getattr(config, "final_logit_softcapping", None) or 0.0,
        update_norms=is_gemma,
        query_key_norm=hasattr(attention, "q_norm"),
        score_scale=attention.scaling,
        attention_softcap=getattr(attention, "attn_logit_softcapping", None) or 0.0,
        rotations=_rotations(backbone.rotary_emb),
        layers=tuple(
            (_window(each.self_attn, config), _rotation(each.self_attn, backbone)) for each in backbone.layers
        ),
    )


def _activation(config: Any) -> str:
    name: str = getattr(config, "hidden_activation", None) or config.hidden_act
    return name


def _window(attention: Any, config: Any) -> int:
    """Mistral's layers do not say it themselves: all have that of the configuration."""
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window or 0
    return getattr(config, "sliding_window", None) or 0


def _rotations(rotary: Any) -> dict[str, tuple[Tensor, float]]:
    """Gemma 3 has one for each type of layer; the others have one."""
    if hasattr(rotary, "inv_freq"):
        return {"": (rotary.inv_freq, rotary.attention_scaling)}
    return {
        kind: (getattr(rotary, f"{kind}_inv_freq"), getattr(rotary, f"{kind}_attention_scaling"))
        for kind in rotary.layer_types
    }


def _rotation(attention: Any, backbone: Any) -> str:
    return "" if hasattr(backbone.rotary_emb, "inv_freq") else attention.layer_type
