"""Which files of a folder belong to a split, by their names, as the ``datasets`` library has it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from rlserve.errors import DataError

_WORDS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SEPARATOR = re.compile(r"[-._ 0-9/]+")
_FRONT_MATTER = re.compile(r"---\s*\n(?P<yaml>.*?)\n---\s*(\n|$)", re.DOTALL)
_SHARD = re.compile(r"(?P<split>\w+)-\d{5}-of-\d{5}")


def files_of_split(folder: Path, split: str, suffixes: Sequence[str]) -> list[Path]:
    """The files of a split, in order of their paths: those that have a word for it in their name or in that of a
    folder (``train.jsonl``, ``test/a.jsonl``, ``train-00000-of-00002.parquet``). Where no file has such a word, all
    are ``train``. Other suffixes and hidden files are passed over.

    Raises:
        DataError: there are none, or they are of several data sets; says what there is.
    """
    _check_one_set(folder)
    visible = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
    )
    files = [path for path in visible if path.suffix in suffixes]
    if not files:
        kinds = Counter(path.suffix or "no suffix" for path in visible)
        found = ", ".join(f"{count} × {kind}" for kind, count in sorted(kinds.items())) or "nothing"
        raise DataError(f"{folder}: holds no {', '.join(suffixes)} file; found: {found}")
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(file.relative_to(folder)) or "", []).append(file)
    if set(splits) == {""}:
        splits = {"train": files}
    if split not in splits:
        named = ", ".join(repr(name) for name in splits if name)
        raise DataError(f"{folder}: has no files of split {split!r}, only of {named}; set data.split to one of them")
    return splits[split]


def _check_one_set(folder: Path) -> None:
    """A copy of a repository of the hub may hold several data sets, which its README.md names: they are not one."""
    card = folder / "README.md"
    head = _FRONT_MATTER.match(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    if head is None:
        return
    try:
        content = yaml.safe_load(head["yaml"])
    except yaml.YAMLError:  # it is no card of a data set, then
        return
    sets = content.get("configs") if isinstance(content, dict) else None
    names = [str(entry.get("config_name")) for entry in sets or () if isinstance(entry, dict)]
    if len(names) > 1:
        raise DataError(
            f"{folder}: holds {len(names)} data sets ({', '.join(names)}), as its README.md says; "
            f"set data.path to the folder or the file of one of them"
        )


def _split_of(path: Path) -> str | None:
    shard = _SHARD.fullmatch(path.stem)
    if shard is not None:
        return shard["split"]
    words = _SEPARATOR.split(path.with_suffix("").as_posix().lower())
    return next((split for split, known in _WORDS.items() if set(words) & set(known)), None)
