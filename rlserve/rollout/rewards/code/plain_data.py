"""Values of Python as JSON and back, built from plain data alone: what a hostile program sends can be nothing else.

Goes along into the processes of both sides, and so imports the standard library alone.
"""

from __future__ import annotations

from typing import Any


def encode(value: Any) -> Any:
    """``value`` as JSON has it.

    Raises:
        TypeError: it, or something in it, is no plain data.
    """
    if value is None or isinstance(value, (bool, str)):
        return value if value is None or isinstance(value, bool) else str(value)
    if isinstance(value, int):
        return {"int": hex(value)}
    if isinstance(value, float):
        return {"float": float(value).hex()}
    if isinstance(value, complex):
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encode(item) for item in value]}
    if callable(getattr(value, "tolist", None)):  # arrays and numbers of NumPy
        return encode(value.tolist())
    raise TypeError(f"a {type(value).__name__} is no plain data")


def decode(value: Any) -> Any:
    """What ``encode`` was given.

    Raises:
        ValueError: ``encode`` gives no such thing.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError("no encoded value")
    ((kind, content),) = value.items()
    if kind == "int":
        return int(content, 16)
    if kind == "float":
        return float.fromhex(content)
    if kind == "complex":
        return complex(float.fromhex(content[0]), float.fromhex(content[1]))
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "dict":
        return {decode(key): decode(item) for key, item in content}
    makers = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
    if kind not in makers:
        raise ValueError("no encoded value")
    return makers[kind](decode(item) for item in content)
