"""Which layers see only the last tokens: sliding windows as ``config.json`` gives them."""

from __future__ import annotations

from collections.abc import Callable

from rlserve.engine.models.base import ConfigFile

SLIDING, FULL = "sliding_attention", "full_attention"


def read_window(config: ConfigFile, default: int) -> int:
    """Length of the window in tokens: ``default`` where the file does not say, 0 (no window) where it says null."""
    if config.has("sliding_window") and config.is_null("sliding_window"):
        return 0
    return config.integer("sliding_window", default)


def windows_by_type(
    config: ConfigFile, num_layers: int, window: int, default_type: Callable[[int], str]
) -> tuple[int, ...]:
    """The window of each layer (0: sees all), by the file's ``layer_types`` or else by ``default_type(layer)``.

    Raises:
        ModelError: a type that the engine does not compute, or not one for each layer.
    """
    types = config.words("layer_types")
    if types is None:
        types = tuple(default_type(layer) for layer in range(num_layers))
    unknown = sorted(set(types) - {SLIDING, FULL})
    if unknown:
        raise config.error(f"layer_types has {unknown[0]!r}, which is not supported, only {SLIDING!r} and {FULL!r}")
    if len(types) != num_layers:
        raise config.error(f"layer_types has {len(types)} entries for {num_layers} layers")
    return tuple(window if kind == SLIDING else 0 for kind in types)


def qwen_windows(config: ConfigFile, num_layers: int) -> tuple[int, ...]:
    """Windows of Qwen2 and Qwen3: off unless ``use_sliding_window``, then in layers from ``max_window_layers``."""
    window = read_window(config, 4096)
    if not config.flag("use_sliding_window", False) or not window:
        return ()
    first = config.integer("max_window_layers", 28, at_least=0)
    return windows_by_type(config, num_layers, window, lambda layer: SLIDING if layer >= first else FULL)
