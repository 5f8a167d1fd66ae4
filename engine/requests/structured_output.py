"""What form an answer must have. Plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

StructuredOutputKind = Literal["json_schema", "json_object", "regex", "choice", "grammar"]


@dataclass(frozen=True, kw_only=True)
class StructuredOutput:
    """An answer in this form and no other; see ``engine/grammars/``."""

    kind: StructuredOutputKind
    text: str = ""
    """The JSON schema; nothing for ``json_object``; the regular expression; the texts to choose from, as a JSON list;
    the context-free grammar in Lark's or llama.cpp's (GBNF) notation."""
