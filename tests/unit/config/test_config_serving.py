"""The configuration of a server, composed like that of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlserve.config.serving import load_serving
from rlserve.errors import ConfigurationError


def test_the_packaged_file_and_overrides() -> None:
    config = load_serving("conf/serve.yaml", ["model.path=/models/1e5", "port=0", "engine.max_num_sequences=7"])
    assert (config.model.path, config.model_name, config.port) == ("/models/1e5", "/models/1e5", 0)
    assert config.engine.max_num_sequences == 7
    assert load_serving("conf/serve.yaml", ["model.name=mine"]).model_name == "mine"


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: {path: /m}\nnum_replicas: 3\nrouting: {policy: consistent_hash}\n")
    config = load_serving(str(file))
    assert (config.num_replicas, config.routing.policy) == (3, "consistent_hash")


def test_all_problems_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_serving(
            "conf/serve.yaml", ["port=99999", "routing.policy=fastest", "acces.insecure=true", "limits.max_n=0"]
        )
    text = str(caught.value)
    for part in ("port: must be from 0", "routing.policy: must be", "acces", "limits.max_n: must be above 0"):
        assert part in text


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ConfigurationError, match=r"come with rlserve: conf/serve\.yaml$"):
        load_serving("conf/server.yaml")
