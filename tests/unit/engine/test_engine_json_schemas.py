"""Two hundred schemas and more, and not one answer that breaks its own."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from engine_builders import make_engine, run
from json_model import EOS, SECOND_EOS, json_tokenizer, save_json_model
from json_schemas import schemas
from jsonschema import Draft202012Validator, FormatChecker
from structured_setting import structured

from rlserve.engine import FinishReason

CHECKER = FormatChecker()


@CHECKER.checks("date-time", raises=ValueError)
def _is_date_time(text: object) -> bool:
    return not isinstance(text, str) or datetime.fromisoformat(text.upper().replace(":60", ":59")) is not None


@CHECKER.checks("time", raises=ValueError)
def _is_time(text: object) -> bool:
    return _is_date_time(f"2000-01-01T{text}")


def test_every_answer_that_ends_is_valid(tmp_path: Path) -> None:
    wanted, tokenizer = schemas(), json_tokenizer()
    assert len(wanted) >= 200
    engine = make_engine(save_json_model(tmp_path), num_blocks=4000, max_num_sequences=64)
    closing = {int(tokenizer.convert_tokens_to_ids(token)): 3.0 for token in ('"', "]", "}")}
    requests = [
        structured(name, "json_schema", json.dumps(schema), max_tokens=250, logit_bias=closing, n=2)
        for name, schema in wanted.items()
    ]
    num_ended = 0
    for name, output in run(engine, requests).items():
        assert output.error is None, name
        for sample in output.samples:
            if sample.finish_reason is FinishReason.LENGTH:
                continue
            assert sample.stop_reason in (EOS, SECOND_EOS)
            text = tokenizer.decode(sample.token_ids[:-1])
            Draft202012Validator(wanted[name], format_checker=CHECKER).validate(json.loads(text))
            num_ended += 1
    num_cut_off = 2 * len(wanted) - num_ended
    assert num_cut_off <= len(wanted) // 20
