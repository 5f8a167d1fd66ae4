"""A hub's cache with small models under the names that vLLM's tests ask for; nothing is downloaded.

Each is a Llama of two layers with a byte-level tokenizer and the chat template's form of the model that it stands for.
It is trained for a few minutes on the conversations of ``said.py``, so that it answers as the tests expect a model of
that name to: by calls of tools, with reasoning, with JSON. All names share one tokenizer and one set of weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from said import Said, conversations
from templates import CHATML, HEADERS, QWEN3, ZEPHYR
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE = 8192
MAX_MODEL_LEN = 40_960
_REVISION = "0" * 40
_SPECIAL = ("<|endoftext|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>")
_SPECIAL_HEADERS = (
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|python_tag|>",
    "<|user|>",
    "<|system|>",
    "<|assistant|>",
)
_ADDED = ("<think>", "</think>", "<tool_call>", "</tool_call>")
_NUM_STEPS = 800
_BATCH_TOKENS = 6144
_MOST_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """How the tokenizer of a model behaves."""

    template: str
    eos: str
    bos: str | None = None
    examples_template: str | None = None
    """File among vLLM's examples that its tests give as ``--chat-template``."""


_QWEN = StandIn(template=CHATML, eos="<|im_end|>")
_LLAMA = StandIn(template=HEADERS, eos="<|eot_id|>", bos="<|begin_of_text|>")
STAND_INS: dict[str, StandIn] = {
    "Qwen/Qwen3-0.6B": StandIn(template=QWEN3, eos="<|im_end|>"),
    "Qwen/Qwen3-1.7B": StandIn(template=QWEN3, eos="<|im_end|>"),
    "Qwen/Qwen3-8B": StandIn(template=QWEN3, eos="<|im_end|>"),
    "Qwen/Qwen2.5-1.5B-Instruct": _QWEN,
    "Qwen/Qwen2-1.5B-Instruct": _QWEN,
    "HuggingFaceTB/SmolLM2-135M-Instruct": _QWEN,
    "HuggingFaceH4/zephyr-7b-beta": StandIn(template=ZEPHYR, eos="</s>", bos="<s>"),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": StandIn(template=ZEPHYR, eos="</s>", bos="<s>"),
    "openai-community/gpt2": StandIn(template=CHATML, eos="<|endoftext|>"),
    "intfloat/multilingual-e5-small": _LLAMA,
    "meta-llama/Llama-3.2-1B-Instruct": _LLAMA,
    "NousResearch/Hermes-3-Llama-3.1-8B": StandIn(
        template=CHATML, eos="<|im_end|>", bos="<|begin_of_text|>", examples_template="tool_chat_template_hermes.jinja"
    ),
    "meta-llama/Meta-Llama-3.1-8B-Instruct": StandIn(
        template=HEADERS,
        eos="<|eot_id|>",
        bos="<|begin_of_text|>",
        examples_template="tool_chat_template_llama3.1_json.jinja",
    ),
    "meta-llama/Llama-3.2-3B-Instruct": StandIn(
        template=HEADERS,
        eos="<|eot_id|>",
        bos="<|begin_of_text|>",
        examples_template="tool_chat_template_llama3.2_json.jinja",
    ),
}
LORA_STAND_INS = {
    "typeof/zephyr-7b-beta-lora": "HuggingFaceH4/zephyr-7b-beta",
    "charent/self_cognition_Alice": "Qwen/Qwen3-0.6B",
}


def write_hub(vllm: Path, hub: Path) -> None:
    """Make the cache, a folder that ``HF_HUB_CACHE`` can name.

    Args:
        vllm: the folder of vLLM's sources: its pages are what the tokenizer is trained on, and its examples have chat
            templates.
    """
    tokenizer = _tokenizer(vllm)
    model = _train(tokenizer, vllm)
    for name, stand_in in STAND_INS.items():
        folder = _snapshot(hub, name)
        _as_saved(tokenizer, stand_in).save_pretrained(folder)
        model.config.eos_token_id = tokenizer.token_to_id(stand_in.eos)
        model.generation_config.eos_token_id = model.config.eos_token_id
        model.save_pretrained(folder)
    for name, base in LORA_STAND_INS.items():
        _write_adapter(_snapshot(hub, name), base)


def _snapshot(hub: Path, name: str) -> Path:
    """The folder of a model in the cache."""
    root = hub / f"models--{name.replace('/', '--')}"
    folder = root / "snapshots" / _REVISION
    folder.mkdir(parents=True, exist_ok=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(_REVISION)
    return folder


def _tokenizer(vllm: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(_ADDED),
        special_tokens=[*_SPECIAL, *_SPECIAL_HEADERS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    said = json.dumps([[each.messages, each.text, each.calls, each.reasoning] for each in conversations(vllm)])
    tokenizer.train_from_iterator([*_pages(vllm), *[said] * 20, *["Hello, my name is"] * 200], trainer)
    tokenizer.add_tokens(list(_ADDED))
    return tokenizer


def _pages(vllm: Path) -> list[str]:
    return [path.read_text(errors="replace") for path in sorted((vllm / "docs").rglob("*.md"))]


def _as_saved(tokenizer: Tokenizer, stand_in: StandIn) -> PreTrainedTokenizerFast:
    special = {"eos_token": stand_in.eos, "pad_token": "<|endoftext|>"}
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_MODEL_LEN,
        **special,
        **({"bos_token": stand_in.bos} if stand_in.bos else {}),
    )
    made.chat_template = stand_in.template
    return made


def _train(tokenizer: Tokenizer, vllm: Path) -> LlamaForCausalLM:
    """On the conversations, and on pages besides, so that it knows how to go on from anything."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_MODEL_LEN,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        bos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    examples = _examples(tokenizer, vllm)
    pages = tokenizer.encode("\n".join(_pages(vllm)[::4])[:400_000]).ids
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=_NUM_STEPS, pct_start=0.1)
    chance = torch.Generator().manual_seed(0)
    for step in range(_NUM_STEPS):
        rows = _batch(examples, pages, chance)
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([row + [0] * (longest - len(row)) for row, _ in rows])
        labels = torch.tensor([row + [-100] * (longest - len(row)) for _, row in rows])
        hidden = model.model(ids).last_hidden_state[:, :-1]
        told = labels[:, 1:] != -100
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[told]), labels[:, 1:][told])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            sys.stderr.write(f"step {step}: loss {loss.item():.3f}\n")
    return model.eval()


def _batch(
    examples: list[tuple[list[int], list[int]]], pages: list[int], chance: torch.Generator
) -> list[tuple[list[int], list[int]]]:
    start = int(torch.randint(len(pages) - 256, (), generator=chance))
    rows = [(pages[start : start + 256], pages[start : start + 256])]
    while True:
        row = examples[int(torch.randint(len(examples), (), generator=chance))]
        if (len(rows) + 1) * max(len(row[0]), *(len(ids) for ids, _ in rows)) > _BATCH_TOKENS:
            return rows
        rows.append(row)


def _examples(tokenizer: Tokenizer, vllm: Path) -> list[tuple[list[int], list[int]]]:
    """Tokens, and the same with -100 where nothing is to be learned."""
    examples = []
    for name, stand_in in _unlike().items():
        made = _as_saved(tokenizer, stand_in)
        template = (vllm / "examples" / stand_in.examples_template).read_text() if stand_in.examples_template else None
        for said in conversations(vllm):
            if (answer := said.answer_of(name)) is None:
                continue
            prompt = _prompt(made, said, template)
            ids = made.encode(prompt, add_special_tokens=False)
            told = made.encode(answer + stand_in.eos, add_special_tokens=False)
            if len(ids) + len(told) <= _MOST_TOKENS:
                hidden = len(ids) + (1 if said.is_forced else 0)
                examples.append((ids + told, [-100] * hidden + (ids + told)[hidden:]))
    return examples


def _unlike() -> dict[str, StandIn]:
    """One of each behaviour."""
    found: dict[StandIn, str] = {}
    for name, stand_in in STAND_INS.items():
        found.setdefault(stand_in, name)
    return {name: stand_in for stand_in, name in found.items()}


def _prompt(tokenizer: PreTrainedTokenizerFast, said: Said, template: str | None) -> str:
    if said.is_text:
        return str(said.messages[0]["content"])
    text = tokenizer.apply_chat_template(
        said.messages,
        chat_template=template,
        tools=said.tools or None,
        tokenize=False,
        add_generation_prompt=not said.goes_on,
        continue_final_message=said.goes_on,
        **said.arguments,
    )
    return str(text)


def _write_adapter(folder: Path, base: str) -> None:
    """A LoRA adapter that changes little, in PEFT's form."""
    from safetensors.torch import save_file

    chance = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(2):
        for name, width in (("q_proj", 128), ("v_proj", 64)):
            place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{place}.lora_A.weight"] = torch.randn(8, 128, generator=chance) * 0.01
            tensors[f"{place}.lora_B.weight"] = torch.randn(width, 8, generator=chance) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    content = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "bias": "none"}
    content |= {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
    content |= {"fan_in_fan_out": False, "inference_mode": True, "modules_to_save": None}
    (folder / "adapter_config.json").write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vllm", type=Path, help="vLLM's sources")
    parser.add_argument("hub", type=Path, help="folder of the cache, made anew")
    given = parser.parse_args()
    shutil.rmtree(given.hub, ignore_errors=True)
    write_hub(given.vllm, given.hub)
