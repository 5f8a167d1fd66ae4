"""A draw on its way from the device to the host.

Legend: B draws.
"""

from __future__ import annotations

import numpy as np
import torch

from rlserve.engine.kernels.base import SampledTokens


class DeviceDraw:
    """Packed draws, and the copy of them that the host will read.

    The copy and the event behind it are put into the stream of the draw at once. So the next step, launched behind
    them, may overwrite the packed draws (the memory of a CUDA graph is always the same), and reading waits for this
    step alone. Without a GPU the copy is done when it is made.

    Args:
        packed_3B: int32 on the device: token ids, and the bits of raw and of behaviour log-probabilities.
        num_draws: how many of the B columns count; None for all.
    """

    def __init__(self, packed_3B: torch.Tensor, num_draws: int | None = None) -> None:
        on_gpu = packed_3B.is_cuda
        self.token_ids_B = packed_3B[0, :num_draws]
        self._num_draws = num_draws
        self._host_3B = torch.empty(packed_3B.shape, dtype=torch.int32, pin_memory=on_gpu)
        self._host_3B.copy_(packed_3B, non_blocking=on_gpu)
        self._copied: torch.cuda.Event | None = None
        if on_gpu:
            self._copied = torch.cuda.current_stream(packed_3B.device).record_event()

    def read(self) -> SampledTokens:
        """The tokens; waits until the device has drawn them, and not for what was launched since."""
        if self._copied is not None:
            self._copied.synchronize()
        host = self._host_3B.numpy()[:, : self._num_draws]
        return SampledTokens(
            token_ids=host[0], log_probs=host[1].view(np.float32), behaviour_log_probs=host[2].view(np.float32)
        )


def pack(token_ids_B: torch.Tensor, log_probs_B: torch.Tensor, behaviour_log_probs_B: torch.Tensor) -> torch.Tensor:
    """[3, B] int32, as :class:`DeviceDraw` takes it."""
    return torch.stack([token_ids_B.int(), log_probs_B.view(torch.int32), behaviour_log_probs_B.view(torch.int32)])
