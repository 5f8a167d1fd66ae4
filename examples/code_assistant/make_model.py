"""Train a small model of Python code on the standard library, and write it as a Hugging Face folder.

python examples/code_assistant/make_model.py assistant

Three minutes on two cores. It writes lines that look like Python; a real assistant is a model of your own.
"""

from __future__ import annotations

import argparse
import sysconfig
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE = 1024
MAX_MODEL_LEN = 2048
ROWS_A_STEP = 2
TEMPLATE = (
    "{% for message in messages %}# {{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}# assistant: {% endif %}"
)


def read_library() -> list[str]:
    """The modules at the top of Python's standard library: some four million characters."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return [path.read_text(encoding="utf-8", errors="ignore") for path in sorted(root.glob("*.py"))]


def make_tokenizer(sources: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every text has tokens, and comes back as it was."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sources, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    made.chat_template = TEMPLATE
    return made


def make_model(end_token_id: int) -> LlamaForCausalLM:
    """Four layers, some one million parameters."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_MODEL_LEN,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end_token_id,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def train(model: LlamaForCausalLM, token_ids: torch.Tensor, num_steps: int) -> float:
    """Next-token prediction on windows drawn from ``token_ids`` ``[num_tokens]``; returns the last loss, in nats."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=num_steps, pct_start=0.1)
    chance = torch.Generator().manual_seed(0)
    loss = torch.tensor(0.0)
    start = time.monotonic()
    for step in range(num_steps):
        begins = torch.randint(0, token_ids.numel() - MAX_MODEL_LEN, (ROWS_A_STEP,), generator=chance)
        rows = torch.stack([token_ids[begin : begin + MAX_MODEL_LEN] for begin in begins])
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 49:
            print(
                f"step {step + 1} of {num_steps}: loss {loss.item():.2f}, {time.monotonic() - start:.0f} s", flush=True
            )
    return loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-steps", type=int, default=400)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    sources = read_library()
    tokenizer = make_tokenizer(sources)
    encoded = tokenizer(sources, verbose=False)["input_ids"]
    token_ids = torch.tensor([token for source in encoded for token in (*source, tokenizer.eos_token_id)])
    model = make_model(tokenizer.eos_token_id)
    loss = train(model, token_ids, arguments.num_steps)
    model.save_pretrained(arguments.folder)
    tokenizer.save_pretrained(arguments.folder)
    print(f"{model.num_parameters():,} parameters, {token_ids.numel():,} tokens, loss {loss:.2f}: {arguments.folder}")


if __name__ == "__main__":
    main()
