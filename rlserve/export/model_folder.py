"""Write a model as a Hugging Face folder: its weights in the type that is asked for, its tokenizer, its settings.

::

    policy/ ──transformers, peft──► model ──type, int8──► .exporting-NAME/ ──rename──► NAME/
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlserve.errors import UserError
from rlserve.export.adapters import holds_adapters, load_merged
from rlserve.export.int8 import QUANTISATION_CONFIG, quantised_weights

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantisation = Literal["int8"]


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """What was written."""

    folder: Path
    num_parameters: int
    size_bytes: int
    """Of the files of its weights."""


def export_model(source: Path, target: Path, *, dtype: Dtype, quantisation: Quantisation | None) -> ExportedModel:
    """Write the model in ``source`` to ``target``, which is there as a whole or not at all. Adapters of peft in
    ``source`` are merged into their model.

    Args:
        dtype: ``auto`` leaves it as it is.

    Raises:
        UserError: there is something at ``target``, it cannot be written, or the model has no int8 format.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} is there already: name a new folder")
    model = _load(source, None if dtype == "auto" else getattr(torch, dtype))
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    weights = None
    if quantisation == "int8":
        weights = quantised_weights(model)
        model.config.quantization_config = dict(QUANTISATION_CONFIG)
    temporary = target.with_name(f".exporting-{target.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # what a killed export left
        temporary.mkdir(parents=True)
        model.save_pretrained(temporary, state_dict=weights)
        AutoTokenizer.from_pretrained(source).save_pretrained(temporary)
        temporary.replace(target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{target} cannot be written ({error.strerror or error}): name another folder") from error
    size_bytes = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    return ExportedModel(folder=target, num_parameters=num_parameters, size_bytes=size_bytes)


def _load(source: Path, dtype: torch.dtype | None) -> Any:
    if holds_adapters(source):
        return load_merged(source, dtype)
    architectures = AutoConfig.from_pretrained(source).architectures or []
    scores = any(name.endswith("ForSequenceClassification") for name in architectures)
    loader = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    return loader.from_pretrained(source, dtype=dtype or "auto")
