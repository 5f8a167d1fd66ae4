"""Whole models on the Triton backend: chunks of prompts beside decoding, shared prefixes, forks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine_builders import make_engine, make_request, run
from trainer_samples import FAMILIES, save_tiny_model
from triton_device import DEVICE

REQUESTS = [
    make_request("short", [3, 4], temperature=0.0, max_tokens=4),
    make_request("long", range(1, 14), temperature=0.0, max_tokens=2, n=2),
]
"""The long prompt takes two steps, and the short one decodes beside it."""


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_tokens_of_plain_pytorch(family: str, tmp_path: Path) -> None:
    folder = Path(save_tiny_model(tmp_path, family))
    expected = run(make_engine(folder, attention_backend="torch", device="cpu", max_num_batched_tokens=10), REQUESTS)
    engine = make_engine(folder, attention_backend="triton", device=DEVICE.type, max_num_batched_tokens=10)
    found = run(engine, REQUESTS)
    assert engine.stats().num_partial_chunks > 0
    for request in REQUESTS:
        for sample, wanted in zip(found[request.id].samples, expected[request.id].samples, strict=True):
            assert sample.token_ids == wanted.token_ids
            np.testing.assert_allclose(sample.log_probs, wanted.log_probs, atol=1e-4)
