"""Another variant may be chosen over a file that describes one: ``manager=static`` over the queue-length rule's file.

A file that names a variant describes that one. Where another is chosen above it (on the command line, when a run is
resumed), those of its keys that the chosen one lacks go with the variant that they were for. A key that stands without
the name of a variant is meant for whichever is chosen, and is refused if that one lacks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlserve.config.compose import Composed
from rlserve.config.keys import Variants, hints_of, join_key, nested_dataclasses, value_at, variants_of
from rlserve.config.tree import RunConfig


def without_other_variants(values: Mapping[str, Any], composed: Composed) -> dict[str, Any]:
    """Nested plain values without the keys that a file sets for a variant which is not the chosen one."""
    kept = dict(values)
    for key, variants in _unions(RunConfig, ""):
        given = value_at(kept, key)
        if isinstance(given, Mapping) and (chosen := variants.chosen_by(given)) is not None:
            lacking = [name for name in given if name not in hints_of(chosen)]
            for name in lacking:
                if _is_of_another(join_key(key, name), key, variants, chosen, composed):
                    kept = _without(kept, join_key(key, name))
    return kept


def _unions(cls: type[Any], key: str) -> Iterator[tuple[str, Variants]]:
    for name, annotation in hints_of(cls).items():
        if (variants := variants_of(annotation)) is not None:
            yield join_key(key, name), variants
        for nested in nested_dataclasses(annotation):
            yield from _unions(nested, join_key(key, name))


def _is_of_another(key: str, owner: str, variants: Variants, chosen: type[Any], composed: Composed) -> bool:
    """Whether the file that sets ``key`` names another variant under ``owner``."""
    named = value_at(composed.files.get(composed.source(key), {}), join_key(owner, variants.discriminator))
    return isinstance(named, str) and variants.types.get(named, chosen) is not chosen


def _without(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    name, _, rest = key.partition(".")
    if rest:
        return {**values, name: _without(values[name], rest)}
    return {other: value for other, value in values.items() if other != name}
