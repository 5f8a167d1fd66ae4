"""From the options of ``vllm serve`` to those of ``rlserve serve``, as the table in docs/serving.md has them. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_NAMES = {
    "max-model-len": "engine.max_model_len",
    "max-num-seqs": "engine.max_num_sequences",
    "max-num-batched-tokens": "engine.max_num_batched_tokens",
    "block-size": "engine.block_size",
    "tensor-parallel-size": "engine.tensor_parallel_size",
    "data-parallel-size": "num_replicas",
    "host": "host",
    "port": "port",
    "uds": "unix_socket",
    "root-path": "root_path",
    "served-model-name": "model.name",
    "tokenizer": "model.tokenizer_path",
    "chat-template": "model.chat_template",
    "ssl-certfile": "access.tls_certificate",
    "ssl-keyfile": "access.tls_key",
    "max-logprobs": "limits.max_logprobs",
    "shutdown-timeout": "drain.timeout_s",
}
_SWITCHES = {
    "enable-per-request-metrics": "answers.timings",
    "enable-force-include-usage": "answers.stream_usage",
    "return-tokens-as-token-ids": "answers.tokens_as_token_ids",
}
_TOOL_PARSERS = {"hermes": "hermes", "llama3_json": "llama3_json"}
_REASONING_PARSERS = {"qwen3": "think_tags", "deepseek_r1": "think_tags"}
_WITHOUT_EFFECT = frozenset(
    {
        *(
            "enforce-eager",
            "gpu-memory-utilization",
            "dtype",
            "seed",
            "enable-chunked-prefill",
            "enable-auto-tool-choice",
        ),
        *("enable-prompt-tokens-details", "no-async-scheduling", "structured-outputs-config.backend"),
        *("enable-request-id-headers", "load-format", "api-server-count", "trust-request-chat-template"),
        *("reasoning-config", "enable-prefix-caching"),
        *("enable-lora", "max-lora-rank", "max-loras", "max-cpu-loras"),
    }
)
"""What a server on a CPU has no use for, or does anyway."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A ``rlserve serve`` that stands in for a ``vllm serve``."""

    model: str
    overrides: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    """Options that there is nothing for."""


def translate(arguments: Sequence[str], environment: Mapping[str, str]) -> Command:
    """
    Args:
        arguments: what follows ``vllm serve``.
        environment: that it would have run in.
    """
    positional, options = _read(arguments)
    model = positional[0] if positional else str(options.pop("model", None))
    overrides = ["engine.device=cpu", "engine.dtype=float32", "engine.kv_cache_bytes=268435456"]
    keys = [key for key in (environment.get("VLLM_API_KEY"), options.pop("api-key", None)) if key]
    unknown = []
    parsers = {"model.reasoning_parser": "none"}
    for name, value in options.items():
        if name in _NAMES:
            overrides.append(f"{_NAMES[name]}={value}")
        elif name == "lora-modules" and value is not None:
            overrides.append(f"model.adapters={{{_adapter(value)}}}")
        elif name in _SWITCHES:
            overrides.append(f"{_SWITCHES[name]}=true")
        elif name == "no-enable-prefix-caching":
            overrides.append("engine.enable_prefix_caching=false")
        elif name == "tool-call-parser" and value in _TOOL_PARSERS:
            parsers["model.tool_parser"] = _TOOL_PARSERS[value]
        elif name == "reasoning-parser" and value in _REASONING_PARSERS:
            parsers["model.reasoning_parser"] = _REASONING_PARSERS[value]
        elif name not in _WITHOUT_EFFECT:
            unknown.append(f"--{name}" if value is None else f"--{name}={value}")
    overrides += [f"{name}={value}" for name, value in parsers.items()]
    return Command(
        model=model,
        overrides=overrides,
        environment={"RLSERVE_API_KEYS": ",".join(keys)} if keys else {},
        unknown=unknown,
    )


def _adapter(module: str) -> str:
    """One of ``--lora-modules``: ``name=path``, or JSON."""
    if module.startswith("{"):
        content = json.loads(module)
        return f"{content['name']}: {content['path']}"
    name, _, path = module.partition("=")
    return f"{name}: {path}"


def _read(arguments: Sequence[str]) -> tuple[list[str], dict[str, str | None]]:
    """Words by themselves, and options by their names with dashes. The last of several values counts for one."""
    positional: list[str] = []
    options: dict[str, str | None] = {}
    name: str | None = None
    for word in arguments:
        if word.startswith("-") and not _is_number(word):
            name, has_value, value = word.lstrip("-").partition("=")
            name = name.replace("_", "-")
            options[name] = value if has_value else None
        elif name is None:
            positional.append(word)
        elif options[name] is None:
            options[name] = word
    return positional, options


def _is_number(word: str) -> bool:
    return word.lstrip("-").replace(".", "", 1).isdigit()
