"""Adapters of LoRA, as a folder of peft, merged into the model that they were trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlserve.errors import UserError

if TYPE_CHECKING:
    import torch

ADAPTER_CONFIG = "adapter_config.json"


def holds_adapters(folder: Path) -> bool:
    """Whether a folder has adapters in place of a model."""
    return (folder / ADAPTER_CONFIG).is_file()


def load_merged(folder: Path, dtype: torch.dtype | None) -> Any:
    """The model with its adapters merged in, which is done in float32.

    Args:
        dtype: of its weights afterwards; None takes the type of the model that training began with.

    Raises:
        UserError: that model is not where it was.
    """
    # Imported where used: whoever only asks what a folder holds need not wait for torch.
    import torch
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    base_path = json.loads((folder / ADAPTER_CONFIG).read_text())["base_model_name_or_path"]
    try:
        base = AutoModelForCausalLM.from_pretrained(base_path, dtype=torch.float32)
        own_dtype = AutoConfig.from_pretrained(base_path).dtype
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} holds adapters of {base_path!r}, which cannot be loaded ({error}): say where it is as "
            f"base_model_name_or_path in {ADAPTER_CONFIG}"
        ) from error
    return PeftModel.from_pretrained(base, str(folder)).merge_and_unload().to(dtype or own_dtype or torch.float32)
