"""Small data sets and tokenizers for the tests of supervised data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlserve.rollout.config import DataConfig
from rlserve.supervised.loading import load_source
from rlserve.supervised.source import SupervisedSource
from rlserve.tasks.character_tokenizer import character_tokenizer
from rlserve.trainers.algorithms.supervised.config import SFTConfig, SupervisedConfig

ALPHABET = "0123456789+=abcdefghijklmnopqrstuvwxyz :.\n"
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def tokenizer(template: str | None = None) -> Any:
    """One token a character; a chat template if asked for."""
    made = character_tokenizer(ALPHABET)
    made.chat_template = template
    return made


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sums(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{number}+1=", "completion": str(number + 1)} for number in range(count)]


def load(
    path: Path,
    *,
    algorithm: SupervisedConfig | None = None,
    template: str | None = None,
    model_length: int = 512,
    seed: int = 0,
    **data: Any,
) -> SupervisedSource:
    config = DataConfig(path=str(path), **data)
    chosen = algorithm or SFTConfig(batch_size=4)
    return load_source(config, chosen, tokenizer(template), seed=seed, model_length=model_length)
