"""Find the pairs of ``builtin:NAME``, making them first if they are not in the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from rlserve.cache_folder import cache_folder
from rlserve.errors import UserError
from rlserve.tasks.base import Split
from rlserve.tasks.cache import cached_folder
from rlserve.tasks.preferences.addition import addition_pairs

_MAKERS: Mapping[str, Callable[..., list[dict[str, str]]]] = {"builtin:addition": addition_pairs}
_SEED = 0
_NUM_PAIRS: Mapping[Split, int] = {"train": 4096, "held_out": 512}


def resolve_preferences(path: str) -> tuple[Path, Path]:
    """The JSONL files of a built-in task, training and held-out, with the columns ``prompt``, ``chosen``, ``rejected``.

    Raises:
        UserError: there are none.
        DeadlineExceededError: another process held the lock for too long.
    """
    if path not in _MAKERS:
        raise UserError(f"data.path={path}: there are no preferences for it; there are for {', '.join(_MAKERS)}")
    digest = hashlib.sha256(repr((_SEED, sorted(_NUM_PAIRS.items()))).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())

    def make(folder: Path) -> None:
        for split, count in _NUM_PAIRS.items():
            rows = _MAKERS[path](seed=_SEED, split=split, count=count)
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    name = f"{path.partition(':')[2]}-preferences-{digest.hexdigest()[:16]}"
    folder = cached_folder(cache_folder(), name, make)
    return folder / "train.jsonl", folder / "held_out.jsonl"
