"""The Triton programs of the small operations; launched by ``triton_kernels.py``. Sums are in float32.

Legend: T tokens, H hidden size, I intermediate size, B samples to draw, V vocabulary, C chunks of the vocabulary.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rlserve.engine.attention.paged_programs import norm_weighted


@triton.jit
def add_rms_norm(
    residual_ptr,
    update_ptr,
    weight_ptr,
    out_ptr,
    eps,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_UPDATE: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Program (token): ``residual += update`` where there is one, then ``out = rms_norm(residual)``."""
    DTYPE: tl.constexpr = residual_ptr.dtype.element_ty
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    at = tl.program_id(0).to(tl.int64) * SIZE + column
    hidden = tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_UPDATE:
        hidden += tl.load(update_ptr + at, mask=inside, other=0.0).to(tl.float32)
        rounded = hidden.to(DTYPE)
        tl.store(residual_ptr + at, rounded, mask=inside)
        hidden = rounded.to(tl.float32)
    normed = hidden * tl.rsqrt(tl.sum(hidden * hidden, 0) / SIZE + eps)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0)
    tl.store(out_ptr + at, norm_weighted(normed, weight, OFFSET, DTYPE).to(DTYPE), mask=inside)


@triton.jit
def gated_activation(gate_up_ptr, out_ptr, SIZE: tl.constexpr, BLOCK: tl.constexpr, IS_GELU: tl.constexpr):
    """Program (token, block of columns): ``silu(gate) * up``, or GELU by the hyperbolic tangent."""
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < SIZE
    gate = tl.load(gate_up_ptr + token * (2 * SIZE) + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + token * (2 * SIZE) + SIZE + column, mask=inside, other=0.0).to(tl.float32)
    # Both are gate * sigmoid(z): GELU's 0.5 * (1 + tanh(y)) is sigmoid(2 y).
    steepness = gate
    if IS_GELU:
        steepness = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    activated = (gate / (1.0 + tl.exp(-steepness))).to(DTYPE).to(tl.float32)
    tl.store(out_ptr + token * SIZE + column, (activated * up).to(DTYPE), mask=inside)


@triton.jit
def weigh_chunks(
    logits_ptr,
    rows_ptr,
    temperature_ptr,
    peak_ptr,
    raw_ptr,
    scaled_ptr,
    best_ptr,
    NUM_CHUNKS: tl.constexpr,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Program (draw, chunk): the peak of a chunk's logits, who has it, and the sums of exp(logit - peak) at
    temperature 1 and at the draw's own; all outputs are [B, C]."""
    draw, chunk = tl.program_id(0), tl.program_id(1)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    row = tl.load(rows_ptr + draw).to(tl.int64)
    logit = tl.load(logits_ptr + row * VOCAB + token, mask=token < VOCAB, other=float("-inf")).to(tl.float32)
    temperature = tl.load(temperature_ptr + draw)
    temperature = tl.where(temperature == 0.0, 1.0, temperature)
    peak = tl.max(logit, 0)
    distance = logit - tl.where(peak == float("-inf"), 0.0, peak)
    out_at = draw * NUM_CHUNKS + chunk
    tl.store(peak_ptr + out_at, peak)
    tl.store(raw_ptr + out_at, tl.sum(tl.exp(distance), 0))
    tl.store(scaled_ptr + out_at, tl.sum(tl.exp(distance / temperature), 0))
    tl.store(best_ptr + out_at, tl.min(tl.where(logit == peak, token, VOCAB - 1), 0))


@triton.jit
def _find(weight, before, target, index, SIZE: tl.constexpr):
    """The first of positive weight at which the running sum passes the target; where rounding lets it pass
    nowhere, the last of positive weight."""
    passes = (weight > 0.0) & (tl.cumsum(weight, 0) + before > target)
    first = tl.min(tl.where(passes, index, SIZE), 0)
    last = tl.max(tl.where(weight > 0.0, index, 0), 0)
    return tl.minimum(first, last)


@triton.jit
def draw_tokens(
    logits_ptr,
    rows_ptr,
    temperature_ptr,
    uniform_ptr,
    peak_ptr,
    raw_ptr,
    scaled_ptr,
    best_ptr,
    token_ptr,
    log_prob_ptr,
    behaviour_ptr,
    NUM_CHUNKS: tl.constexpr,
    CHUNKS_BLOCK: tl.constexpr,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Program (draw): find the chunk in which the running sum of weights passes uniform * total, and the token in
    it. Only one chunk of logits is read again."""
    draw = tl.program_id(0)
    chunks = tl.arange(0, CHUNKS_BLOCK)
    is_chunk = chunks < NUM_CHUNKS
    part_at = draw * NUM_CHUNKS + chunks
    peaks = tl.load(peak_ptr + part_at, mask=is_chunk, other=float("-inf"))
    peak = tl.max(peaks, 0)
    given = tl.load(temperature_ptr + draw)
    temperature = tl.where(given == 0.0, 1.0, given)
    raw = tl.load(raw_ptr + part_at, mask=is_chunk, other=0.0) * tl.exp(peaks - peak)
    scaled = tl.load(scaled_ptr + part_at, mask=is_chunk, other=0.0) * tl.exp((peaks - peak) / temperature)
    raw_total, total = tl.sum(raw, 0), tl.sum(scaled, 0)
    target = tl.load(uniform_ptr + draw) * total

    chunk = _find(scaled, 0.0, target, chunks, CHUNKS_BLOCK)
    before = tl.sum(tl.where(chunks < chunk, scaled, 0.0), 0)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    row_ptr = logits_ptr + tl.load(rows_ptr + draw).to(tl.int64) * VOCAB
    logit = tl.load(row_ptr + token, mask=token < VOCAB, other=float("-inf")).to(tl.float32)
    drawn = _find(tl.exp((logit - peak) / temperature), before, target, token, VOCAB)
    best_chunk = tl.min(tl.where(peaks == peak, chunks, NUM_CHUNKS - 1), 0)
    greedy = tl.load(best_ptr + draw * NUM_CHUNKS + best_chunk)
    # Logits that are not finite find no token: any will do, its log-probability tells.
    chosen = tl.minimum(tl.where(given == 0.0, greedy, drawn), VOCAB - 1)
    distance = tl.load(row_ptr + chosen).to(tl.float32) - peak
    behaviour = distance / temperature - tl.log(total)
    tl.store(token_ptr + draw, chosen)
    tl.store(log_prob_ptr + draw, distance - tl.log(raw_total))
    tl.store(behaviour_ptr + draw, tl.where(given == 0.0, 0.0, behaviour))
