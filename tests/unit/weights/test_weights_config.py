"""What the configuration of a transport refuses."""

from __future__ import annotations

from typing import Any

import pytest

from rlserve.errors import ConfigurationError
from rlserve.weights.config import CudaIpcConfig, ObjectStoreConfig, SharedFolderConfig, sends_deltas


@pytest.mark.parametrize("kind", [ObjectStoreConfig, SharedFolderConfig])
def test_a_deadline_of_nothing_and_no_anchor_at_all_are_refused(kind: Any) -> None:
    kind(anchor_every=1)
    with pytest.raises(ConfigurationError) as caught:
        kind(timeout_s=0.0, anchor_every=0)
    assert [problem.key for problem in caught.value.problems] == ["timeout_s", "anchor_every"]


def test_by_cuda_ipc_all_versions_are_whole() -> None:
    assert not sends_deltas(CudaIpcConfig())
    with pytest.raises(ConfigurationError, match="timeout_s"):
        CudaIpcConfig(timeout_s=0.0)
