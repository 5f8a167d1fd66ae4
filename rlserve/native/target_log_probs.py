"""Log-probabilities of given tokens, to the bit as the compiled sampler reports those that it draws."""

from __future__ import annotations

import torch

from rlserve.native.library import load_library


def target_log_probs(logits_RV: torch.Tensor, targets_R: torch.Tensor, temperature: float) -> torch.Tensor:
    """[R] float32: of ``targets`` (int64) under ``softmax(logits / temperature)``, logits float32."""
    assert logits_RV.dtype is torch.float32
    assert logits_RV.is_contiguous()
    assert targets_R.dtype is torch.int64
    assert targets_R.is_contiguous()
    log_probs_R = torch.empty(len(targets_R))
    load_library().score_float32(
        logits_RV.data_ptr(),
        logits_RV.shape[1],
        len(targets_R),
        targets_R.data_ptr(),
        temperature,
        log_probs_R.data_ptr(),
        torch.get_num_threads(),
    )
    return log_probs_R
