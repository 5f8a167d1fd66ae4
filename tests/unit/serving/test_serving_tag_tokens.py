"""Calls that are forced, with a tokenizer to which the tags are tokens of their own, as Qwen's."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from json_model import json_tokenizer

from rlserve.engine.grammars.compiler import GrammarCompiler
from rlserve.engine.grammars.matcher import masks_of
from rlserve.engine.requests.folder_tokenizer import FolderTokenizer
from rlserve.serving.text.vocabulary import Vocabulary
from rlserve.serving.tool_parsers.base import Tool
from rlserve.serving.tool_parsers.choice import REQUIRED, forced_calls
from rlserve.serving.tool_parsers.factory import TOOL_FORMATS
from rlserve.serving.tool_parsers.lark import spelled

NOW = Tool(name="now", parameters={"type": "object", "properties": {}, "additionalProperties": False})
TAGS = ("<tool_call>", "</tool_call>")


def test_tags_that_are_tokens_are_written_as_such() -> None:
    assert spelled('a"<tool_call>\n', TAGS) == '"a\\"" <tool_call> "\\n"'
    assert spelled("\n</tool_call>", TAGS) == '"\\n" </tool_call>'
    assert spelled("\n</tool_call>", ()) == '"\\n</tool_call>"'


@pytest.mark.parametrize("seed", range(3))
def test_a_forced_call_can_be_written_to_its_end(tmp_path: Path, seed: int) -> None:
    tokenizer = json_tokenizer()
    tokenizer.add_tokens(list(TAGS))
    tokenizer.save_pretrained(tmp_path)
    vocabulary = Vocabulary(tokenizer)
    assert vocabulary.tag_tokens == set(TAGS)
    wanted = forced_calls(TOOL_FORMATS["hermes"], [NOW], REQUIRED, several=False, tag_tokens=vocabulary.tag_tokens)
    assert wanted is not None
    vocab_size = len(tokenizer)
    compiler = GrammarCompiler(FolderTokenizer(tmp_path), vocab_size, (tokenizer.eos_token_id,))
    matcher = compiler.compile(wanted).result().matcher()
    chance, token_ids = random.Random(seed), np.empty(0, np.int32)
    while True:
        matcher.follow(token_ids)
        (mask_W,), (has_ended,) = masks_of([matcher])
        assert matcher.problem is None
        if has_ended:
            break
        allowed = [token for token in range(vocab_size) if mask_W[token // 32] >> (token % 32) & 1]
        token_ids = np.append(token_ids, np.int32(chance.choice(allowed)))
    text = vocabulary.decode(token_ids.tolist(), skip_special_tokens=True)
    assert text == '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert set(tokenizer.convert_tokens_to_ids(list(TAGS))) <= set(token_ids.tolist())
