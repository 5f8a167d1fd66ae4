"""LoRA by peft: adapters in the linear layers of a network whose own weights are frozen.

::

    frozen base ◄── policy    with adapters of its own
                ◄── critic    with adapters of its own, and a value head
                ◄── reference without any

The base is in memory once: networks are copies that share its parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rlserve.errors import UserError
from rlserve.trainers.backends.config import LoraConfig

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_ADAPTER = "default"
"""peft's name for the only adapter of a layer."""
NAME_PREFIX = "base_model.model."
"""Before every name in peft's files."""


def freeze(model: nn.Module) -> None:
    """Train none of the parameters, and give each memory of its own: loaded ones lie wherever they lie in the file, and
    the last bits of a product depend on whether its factors begin at a multiple of 64 bytes."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.clone()


def sharing_copy(module: ModuleT) -> ModuleT:
    """A copy whose parameters are those of the module itself."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def add_adapters(model: nn.Module, config: LoraConfig, seed: int) -> None:
    """Give the named linear layers of ``model`` adapters that change nothing yet, and freeze all else in it.

    Args:
        seed: decides the first matrix of each adapter; the second is zero.

    Raises:
        UserError: the model has experts, or no linear layers of one of the names.
    """
    from peft import inject_adapter_in_model

    _check_targets(model, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(_peft_config(config), model, adapter_name=_ADAPTER)
    model.eval()


def adapter_weights(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A policy's adapters under the names of peft's files. Views, not copies."""
    return {f"{NAME_PREFIX}{name.replace(f'.{_ADAPTER}.', '.')}": tensor for name, tensor in parameters.items()}


def save_adapters(folder: Path, weights: Mapping[str, Tensor], config: LoraConfig, model_path: str) -> None:
    """Write what ``adapter_weights`` returned as a folder that peft and vLLM load over the model at ``model_path``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.to("cpu", copy=True) for name, tensor in weights.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    _peft_config(config, base_model_name_or_path=model_path, inference_mode=True).save_pretrained(str(folder))


def merged_weights(model: nn.Module, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model with adapters as those of one without, under its names, in float32.

    Args:
        model: with adapters, and with its base; its adapters are merged into it.
        trained: the parameters that are not frozen.
    """
    from peft.tuners.lora import LoraLayer

    unknown = model.load_state_dict(dict(trained), strict=False).unexpected_keys
    assert not unknown, f"parameters of this model: {unknown}"
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.merge()
    whole = {name: tensor for name, tensor in model.state_dict().items() if ".lora_" not in name}
    return {name.replace(".base_layer.", "."): tensor for name, tensor in whole.items()}


def _peft_config(config: LoraConfig, **settings: Any) -> Any:
    from peft import LoraConfig as PeftLoraConfig

    return PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=list(config.target_modules),
        task_type="CAUSAL_LM",
        **settings,
    )


def _check_targets(model: nn.Module, config: LoraConfig) -> None:
    if any(name.endswith(".experts") for name, _ in model.named_modules()):
        raise UserError(f"trainer.lora.rank={config.rank} is only for models without experts; set it to 0")
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    linear -= {"lm_head", "score"}
    for name in config.target_modules:
        if name not in linear:
            raise UserError(
                f"trainer.lora.target_modules names {name!r}, and this model's linear layers are "
                f"{', '.join(sorted(linear))}"
            )
