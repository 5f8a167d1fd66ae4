"""Tokens as they are drawn: the engine runs in a thread of its own, and this one prints what is new of each prompt.

python examples/library/stream.py MODEL_FOLDER PROMPT …
"""

from __future__ import annotations

import sys

from transformers import AutoTokenizer

from rlserve.engine import Engine, EngineConfig, EngineLoop, Request, SamplingParams


def main(model_path: str, prompts: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    loop = EngineLoop(Engine(model_path, EngineConfig(dtype="float32", kv_cache_bytes=16 * 2**20)))
    stream = loop.subscribe_deltas()
    requests = [
        Request(
            id=str(number),
            prompt_token_ids=tuple(tokenizer(prompt).input_ids),
            sampling=SamplingParams(temperature=0.8, max_tokens=24, seed=number),
        )
        for number, prompt in enumerate(prompts)
    ]
    loop.submit(requests, stream)
    num_open = len(requests)
    while num_open:
        for delta in stream.read(timeout_s=1.0):  # all that is new since the last read, however long ago that was
            for sample in delta.samples:
                text = tokenizer.decode(sample.tokens.token_ids)
                print(f"{prompts[int(delta.request_id)]!r} + {text!r}, from token {sample.start}", flush=True)
            if delta.output is not None:  # the whole answer, as step() gives it
                print(f"{prompts[int(delta.request_id)]!r} ended: {delta.output.samples[0].finish_reason}")
                num_open -= 1
    loop.stop()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
