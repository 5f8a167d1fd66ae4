"""Random LoRA adapters, written by peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from engine_builders import build_model
from peft import LoraConfig, PeftModel, get_peft_model

ALL_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save_adapter(folder: Path, family: str = "qwen3", seed: int = 1, **changes: Any) -> Path:
    """Write an adapter of the model that ``build_model`` makes of a family, none of whose matrices is zero."""
    settings: dict[str, Any] = {"r": 5, "lora_alpha": 9, "target_modules": ALL_MODULES, "task_type": "CAUSAL_LM"}
    model = get_peft_model(build_model(family), LoraConfig(**(settings | changes)))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(str(folder))
    return folder


def merged_model(adapter: Path, family: str = "qwen3") -> Any:
    """That model with the adapter merged into it by peft."""
    return PeftModel.from_pretrained(build_model(family), str(adapter)).merge_and_unload().eval()
