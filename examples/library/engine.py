"""The rollout engine alone: four samples of each prompt, with the log-probability and version of every token.

python examples/library/engine.py MODEL_FOLDER PROMPT …
"""

from __future__ import annotations

import sys

from transformers import AutoTokenizer

from rlserve.engine import Engine, EngineConfig, Request, RequestOutput, SamplingParams


def main(model_path: str, prompts: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    engine = Engine(model_path, EngineConfig(dtype="float32", kv_cache_bytes=16 * 2**20))
    for number, prompt in enumerate(prompts):
        sampling = SamplingParams(n=4, temperature=0.8, top_p=0.95, max_tokens=48, seed=number)
        engine.add(Request(id=prompt, prompt_token_ids=tuple(tokenizer(prompt).input_ids), sampling=sampling))

    outputs: list[RequestOutput] = []
    while engine.has_work:  # the caller turns the loop; weights can be loaded between any two steps
        outputs += engine.step()

    for output in outputs:
        for sample in output.samples:
            text = tokenizer.decode(sample.token_ids, skip_special_tokens=True)
            print(
                f"{output.request_id!r} → {text!r}  {len(sample.token_ids)} tokens, {sample.finish_reason}, "
                f"log-probability {sum(sample.log_probs):.2f}, weights v{max(sample.weight_versions)}"
            )
    stats = engine.stats()
    print(f"{stats.num_generated_tokens} tokens in {stats.num_steps} steps, {stats.num_preemptions} preemptions")
    engine.check_integrity()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
