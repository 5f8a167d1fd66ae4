"""Make a small Llama with a tokenizer of its own, and teach it on demonstrations before reinforcement learning.

python examples/calculator_tool/warm_start.py multiplier

Nothing of rlserve is used: this stands in for a model that you bring, which has seen how the tool is called and mostly
does something else.

Legend: B demonstrations, S tokens of the longest one.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import torch
from multiplication import ALPHABET, demonstrations
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, END = "<pad>", "<end>"
BATCH_SIZE = 128
LEARNING_RATE = 3e-3
NUM_WARMUP_STEPS = 40
IGNORED = -100
"""Label of a token that is not learned."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each character."""
    tokens = (PAD, END, *ALPHABET)
    tokenizer = Tokenizer(WordLevel({token: number for number, token in enumerate(tokens)}, unk_token=PAD))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,  # without it no answer ever ends
    )
    return LlamaForCausalLM(config)


def make_batch(
    shown: list[list[tuple[str, bool]]], tokenizer: PreTrainedTokenizerFast
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, attention mask and labels, [B, S] each. An answer is closed by the end token: that is learned too."""
    texts = ["".join(text for text, _ in pieces) + END for pieces in shown]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, IGNORED)
    for row, pieces in enumerate(shown):
        start = 0  # a character is a token
        for text, is_learned in pieces:
            if not is_learned:
                labels[row, start : start + len(text)] = IGNORED
            start += len(text)
    return batch.input_ids, batch.attention_mask, labels


def teach(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, num_steps: int, seed: int) -> None:
    """Supervised learning on demonstrations."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / NUM_WARMUP_STEPS, 2 * (num_steps - step) / num_steps)
    )
    examples = demonstrations(seed)
    for step in range(1, num_steps + 1):
        token_ids, mask, labels = make_batch(list(islice(examples, BATCH_SIZE)), tokenizer)
        loss = model(input_ids=token_ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == num_steps:
            print(f"step {step}/{num_steps}  loss {loss.item():.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    print(f"{model.num_parameters():,} parameters")
    teach(model, tokenizer, arguments.num_steps, arguments.seed)
    model.save_pretrained(arguments.folder)
    tokenizer.save_pretrained(arguments.folder)
    print(f"a model in {arguments.folder}")


if __name__ == "__main__":
    main()
