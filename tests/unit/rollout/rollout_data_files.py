"""Data files for the tests, and what is loaded from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rollout_tokenizers import character_tokenizer

from rlserve.rollout.config import DataConfig
from rlserve.rollout.prompt_rows import PromptRow, load_rows
from rlserve.rollout.prompt_source import Prompts, load_prompts


def write_jsonl(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def sums(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{number}+1=", "answer": str(number + 1)} for number in range(count)]


def config(path: Path, **changes: Any) -> DataConfig:
    return DataConfig(path=str(path), **({"num_held_out": 1} | changes))


def all_rows(path: Path, **changes: Any) -> list[PromptRow]:
    """Every row of the data, in order."""
    rows, _ = load_rows(config(path, held_out_path=str(path), **changes))
    return list(rows)


def load(path: Path, *, template: str | None = None, max_prompt_tokens: int = 100, **changes: Any) -> Prompts:
    return load_prompts(
        config(path, **changes),
        character_tokenizer(chat_template=template),
        seed=0,
        max_prompt_tokens=max_prompt_tokens,
        prompts_per_step=1,
    )
