"""The Triton programs of paged attention; launched by ``triton_paged.py`` and ``flash.py``.

Legend: T tokens, N query heads, K key-value heads, D head size, S sequences. Keys and values of a layer lie in
[blocks, block_size, K, D], so a token's slot (block * block_size + offset) times K * D is where it begins. Quantised
ones have scales [blocks, block_size, K]; a place is slot * K + head.

A query tile of ``attend_pages`` is neighbouring tokens of one sequence. Where ``SINGLE``, tile i is token i, of
sequence i; else ``tiles_ptr`` holds [3, num_tiles]: first token, number of tokens, sequence. ``tables_ptr`` holds the
width of the block tables, three unused words, and the tables: so one CUDA graph serves tables of any width. With one
split the result goes to ``out``; with more, each split's own goes to ``partial`` [T, N, splits, D] with the peak of
its scores and the total of its weights, for ``join_splits``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rlserve.engine.attention.base import LEAST_TOP

_LOG2_E = tl.constexpr(1.4426950408889634)
_LEAST_TOP = tl.constexpr(LEAST_TOP)


@triton.jit
def norm_weighted(normed, weight, OFFSET: tl.constexpr, DTYPE: tl.constexpr):
    """``normed * (weight + OFFSET)`` as float32, rounded to the model's type where transformers rounds."""
    if OFFSET == 0.0:
        return (normed.to(DTYPE).to(tl.float32) * weight.to(tl.float32)).to(DTYPE).to(tl.float32)
    return (normed * (weight.to(tl.float32) + OFFSET)).to(DTYPE).to(tl.float32)


@triton.jit
def store_head(cache_ptr, scales_ptr, place, first, second, half, HEAD_DIM: tl.constexpr, LARGEST: tl.constexpr):
    """Write one key or value, given as its two halves. With ``LARGEST``, as the largest element's share of that, and
    what a stored 1 stands for as the scale."""
    STORED: tl.constexpr = cache_ptr.dtype.element_ty
    HALF: tl.constexpr = HEAD_DIM // 2
    if LARGEST > 0:
        top = tl.maximum(tl.max(tl.abs(first), 0), tl.max(tl.abs(second), 0))
        top = tl.maximum(top, _LEAST_TOP)
        tl.store(scales_ptr + place, top / LARGEST)
        first = first * (LARGEST / top)
        second = second * (LARGEST / top)
        if cache_ptr.dtype.element_ty == tl.int8:
            first = tl.floor(first + 0.5)
            second = tl.floor(second + 0.5)
    head_ptr = cache_ptr + place * HEAD_DIM
    tl.store(head_ptr + half, first.to(STORED), mask=half < HALF)
    tl.store(head_ptr + HALF + half, second.to(STORED), mask=half < HALF)


@triton.jit
def norm_head(first, second, norm_ptr, half, eps, HALF: tl.constexpr, OFFSET: tl.constexpr, DTYPE: tl.constexpr):
    """The two halves of a head after its RMS norm."""
    inside = half < HALF
    inverse = tl.rsqrt((tl.sum(first * first, 0) + tl.sum(second * second, 0)) / (2 * HALF) + eps)
    first_weight = tl.load(norm_ptr + half, mask=inside, other=0.0)
    second_weight = tl.load(norm_ptr + HALF + half, mask=inside, other=0.0)
    first = norm_weighted(first * inverse, first_weight, OFFSET, DTYPE)
    return first, norm_weighted(second * inverse, second_weight, OFFSET, DTYPE)


@triton.jit
def rotate_and_store(
    qkv_ptr,
    query_norm_ptr,
    key_norm_ptr,
    rotation_ptr,
    positions_ptr,
    slots_ptr,
    keys_ptr,
    values_ptr,
    key_scales_ptr,
    value_scales_ptr,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    HAS_NORM: tl.constexpr,
    NORM_OFFSET: tl.constexpr,
    LARGEST: tl.constexpr,
):
    """Program (token, head of queries, keys, values): normalise and rotate queries in place, and write keys and
    values to their slots; slot -1 writes nothing. ``LARGEST`` as in ``store_head``, 0 stores them as they are."""
    token, head = tl.program_id(0), tl.program_id(1)
    DTYPE: tl.constexpr = qkv_ptr.dtype.element_ty
    HALF: tl.constexpr = HEAD_DIM // 2
    half = tl.arange(0, HALF_BLOCK)
    inside = half < HALF
    row_ptr = qkv_ptr + token.to(tl.int64) * ((NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM) + head * HEAD_DIM
    first = tl.load(row_ptr + half, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(row_ptr + HALF + half, mask=inside, other=0.0).to(tl.float32)
    if head < NUM_HEADS + NUM_KV_HEADS:
        if HAS_NORM:
            norm_ptr = query_norm_ptr
            if head >= NUM_HEADS:
                norm_ptr = key_norm_ptr
            first, second = norm_head(first, second, norm_ptr, half, eps, HALF, NORM_OFFSET, DTYPE)
        angle_ptr = rotation_ptr + tl.load(positions_ptr + token).to(tl.int64) * HEAD_DIM
        cosine = tl.load(angle_ptr + half, mask=inside, other=0.0)
        sine = tl.load(angle_ptr + HALF + half, mask=inside, other=0.0)
        rotated = first * cosine - second * sine
        second = second * cosine + first * sine
        first = rotated
    if head < NUM_HEADS:
        tl.store(row_ptr + half, first.to(DTYPE), mask=inside)
        tl.store(row_ptr + HALF + half, second.to(DTYPE), mask=inside)
    else:
        slot = tl.load(slots_ptr + token).to(tl.int64)
        if slot >= 0:
            if head < NUM_HEADS + NUM_KV_HEADS:
                place = slot * NUM_KV_HEADS + head - NUM_HEADS
                store_head(keys_ptr, key_scales_ptr, place, first, second, half, HEAD_DIM, LARGEST)
            else:
                place = slot * NUM_KV_HEADS + head - NUM_HEADS - NUM_KV_HEADS
                store_head(values_ptr, value_scales_ptr, place, first, second, half, HEAD_DIM, LARGEST)


@triton.jit
def read_tile(tiles_ptr, num_tiles, tile, SINGLE: tl.constexpr):
    """First token, number of tokens and sequence of a query tile."""
    if SINGLE:
        return tile, 1, tile
    first_token = tl.load(tiles_ptr + tile)
    num_queries = tl.load(tiles_ptr + num_tiles + tile)
    return first_token, num_queries, tl.load(tiles_ptr + 2 * num_tiles + tile)


@triton.jit
def range_of_split(
    positions_ptr, first_token, num_queries, split, TILE: tl.constexpr, WINDOW: tl.constexpr, NUM_SPLITS: tl.constexpr
):
    """[begin, stop) of a split's keys: a whole number of tiles, so that splits differ in size by one tile at most."""
    end = tl.load(positions_ptr + first_token + num_queries - 1) + 1
    start = 0
    if WINDOW > 0:
        start = tl.maximum(tl.load(positions_ptr + first_token) - WINDOW + 1, 0) // TILE * TILE
    share = tl.cdiv(tl.cdiv(end - start, TILE), NUM_SPLITS) * TILE
    begin = start + split * share
    return begin, tl.minimum(end, begin + share)


@triton.jit
def score_keys(
    query,
    keys_ptr,
    key_scales_ptr,
    place,
    is_key,
    dim,
    is_dim,
    scale,
    softcap,
    HEAD_DIM: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    IS_QUANTISED: tl.constexpr,
):
    """[rows, keys] the scores of all queries with the keys at ``place``, before any is hidden."""
    key_at = place[None, :] * HEAD_DIM + dim[:, None]
    key = tl.load(keys_ptr + key_at, mask=is_dim[:, None] & is_key[None, :], other=0.0).to(query.dtype)
    score = tl.dot(query, key, input_precision="ieee") * scale
    if IS_QUANTISED:
        score = score * tl.load(key_scales_ptr + place, mask=is_key, other=0.0)[None, :]
    if HAS_SOFTCAP:
        score = softcap * (1.0 - 2.0 / (tl.exp(2.0 * score / softcap) + 1.0))
    return score


@triton.jit
def weigh_scores(score, peak):
    """Weights of the keys relative to the highest score so far, what earlier sums fade by, and that score."""
    new_peak = tl.maximum(peak, tl.max(score, 1))
    # A row that has seen no key yet has no peak; 0 in its place keeps NaN out.
    level = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    return tl.exp2(score - level[:, None]), tl.exp2(peak - level), new_peak


@triton.jit
def store_rows(target_ptr, row, values, is_query, dim, is_dim, HEAD_DIM: tl.constexpr):
    """Write a head of each query to its row."""
    target_at = row[:, None] * HEAD_DIM + dim[None, :]
    tl.store(target_ptr + target_at, values.to(target_ptr.dtype.element_ty), mask=is_query[:, None] & is_dim[None, :])


@triton.jit
def weigh_values(
    weight,
    values_ptr,
    value_scales_ptr,
    place,
    is_key,
    dim,
    is_dim,
    HEAD_DIM: tl.constexpr,
    DTYPE: tl.constexpr,
    IS_QUANTISED: tl.constexpr,
):
    """[rows, D] the sum of the values at ``place``, weighted."""
    value_at = place[:, None] * HEAD_DIM + dim[None, :]
    value = tl.load(values_ptr + value_at, mask=is_key[:, None] & is_dim[None, :], other=0.0).to(DTYPE)
    if IS_QUANTISED:
        weight = weight * tl.load(value_scales_ptr + place, mask=is_key, other=0.0)[None, :]
    return tl.dot(weight.to(DTYPE), value, input_precision="ieee")


@triton.jit
def attend_keys(
    query,
    position,
    keys_ptr,
    values_ptr,
    key_scales_ptr,
    value_scales_ptr,
    table_ptr,
    kv_head,
    begin,
    stop,
    scale,
    softcap,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    IS_QUANTISED: tl.constexpr,
):
    """Attention of rows of queries, each at its ``position``, to the keys [begin, stop) of their sequence, whose row of
    the block tables is ``table_ptr``: [BLOCK_M, D] the weighted sums of values, the total weights, the highest scores.
    """
    dim = tl.arange(0, BLOCK_D)
    is_dim = dim < HEAD_DIM
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    attended = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first_key in range(begin, stop, TILE):
        key_at = first_key + tl.arange(0, TILE)
        is_key = key_at < stop
        page = tl.load(table_ptr + key_at // PAGE_SIZE, mask=is_key, other=0).to(tl.int64)
        place = (page * PAGE_SIZE + key_at % PAGE_SIZE) * NUM_KV_HEADS + kv_head
        score = score_keys(
            query, keys_ptr, key_scales_ptr, place, is_key, dim, is_dim, scale, softcap, HEAD_DIM, HAS_SOFTCAP,
            IS_QUANTISED,
        )  # fmt: skip
        is_visible = is_key[None, :] & (key_at[None, :] <= position[:, None])
        if WINDOW > 0:
            is_visible = is_visible & (key_at[None, :] > position[:, None] - WINDOW)
        score = tl.where(is_visible, score * _LOG2_E, float("-inf"))
        weight, fading, peak = weigh_scores(score, peak)
        total = total * fading + tl.sum(weight, 1)
        attended = attended * fading[:, None] + weigh_values(
            weight, values_ptr, value_scales_ptr, place, is_key, dim, is_dim, HEAD_DIM, query.dtype, IS_QUANTISED
        )
    return attended, total, peak


@triton.jit(do_not_specialize=["num_tiles"])
def attend_pages(
    qkv_ptr,
    keys_ptr,
    values_ptr,
    key_scales_ptr,
    value_scales_ptr,
    out_ptr,
    partial_ptr,
    peak_ptr,
    total_ptr,
    positions_ptr,
    tiles_ptr,
    tables_ptr,
    num_tiles,
    scale,
    softcap,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    IS_QUANTISED: tl.constexpr,
    SINGLE: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
):
    """Program (query tile, key-value head, split): attention of the tile's queries, all heads of the group packed
    into one matrix of BLOCK_M rows, to its share of the keys before them; see above."""
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    first_token, num_queries, sequence = read_tile(tiles_ptr, num_tiles, tile, SINGLE)
    row = tl.arange(0, BLOCK_M)
    is_query = row < num_queries * GROUP
    token = (first_token + row // GROUP).to(tl.int64)
    head = kv_head * GROUP + row % GROUP
    dim = tl.arange(0, BLOCK_D)
    is_dim = dim < HEAD_DIM
    position = tl.load(positions_ptr + token, mask=is_query, other=0)
    query_at = token * ((NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM) + head * HEAD_DIM
    query = tl.load(qkv_ptr + query_at[:, None] + dim[None, :], mask=is_query[:, None] & is_dim[None, :], other=0.0)
    begin, stop = range_of_split(positions_ptr, first_token, num_queries, split, TILE, WINDOW, NUM_SPLITS)
    table_ptr = tables_ptr + 4 + sequence.to(tl.int64) * tl.load(tables_ptr)
    attended, total, peak = attend_keys(
        query, position, keys_ptr, values_ptr, key_scales_ptr, value_scales_ptr, table_ptr, kv_head, begin, stop, scale,
        softcap, NUM_KV_HEADS, HEAD_DIM, BLOCK_D, PAGE_SIZE, BLOCK_M, TILE, WINDOW, HAS_SOFTCAP, IS_QUANTISED,
    )  # fmt: skip
    attended = attended / tl.where(total == 0.0, 1.0, total)[:, None]
    row_at = token * NUM_HEADS + head
    if NUM_SPLITS == 1:
        store_rows(out_ptr, row_at, attended, is_query, dim, is_dim, HEAD_DIM)
    else:
        store_rows(partial_ptr, row_at * NUM_SPLITS + split, attended, is_query, dim, is_dim, HEAD_DIM)
        tl.store(peak_ptr + row_at * NUM_SPLITS + split, peak, mask=is_query)
        tl.store(total_ptr + row_at * NUM_SPLITS + split, total, mask=is_query)


@triton.jit
def join_splits(
    partial_ptr,
    peak_ptr,
    total_ptr,
    out_ptr,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
):
    """Program (token, head): the average of the splits' results, weighted by their share of the softmax."""
    out_row = tl.program_id(0).to(tl.int64) * NUM_HEADS + tl.program_id(1)
    split = tl.arange(0, NUM_SPLITS)
    dim = tl.arange(0, BLOCK_D)
    is_dim = dim < HEAD_DIM
    peak = tl.load(peak_ptr + out_row * NUM_SPLITS + split)
    share = tl.load(total_ptr + out_row * NUM_SPLITS + split) * tl.exp2(peak - tl.max(peak, 0))
    partial_at = (out_row * NUM_SPLITS + split)[:, None] * HEAD_DIM + dim[None, :]
    partial = tl.load(partial_ptr + partial_at, mask=is_dim[None, :], other=0.0)
    joined = tl.sum(partial * share[:, None], 0) / tl.sum(share, 0)
    tl.store(out_ptr + out_row * HEAD_DIM + dim, joined.to(out_ptr.dtype.element_ty), mask=is_dim)
