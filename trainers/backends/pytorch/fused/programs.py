"""The Triton programs of the layers, forward and backward; launched by ``functions.py``. Sums are in float32, and
their order follows from the shapes alone.

Legend: N rows, P programs; a row is a token's hidden state, or one head of it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm_forward(
    inputs_ptr,
    update_ptr,
    weight_ptr,
    outputs_ptr,
    sum_ptr,
    num_rows,
    eps,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    OFFSET: tl.constexpr,
    HAS_UPDATE: tl.constexpr,
):
    """Program (tile of rows): the sum of inputs and update, where there is one, and
    ``sum / rms(sum) * (weight + OFFSET)``."""
    column = tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = row[:, None] * SIZE + column[None, :]
    inside = (row < num_rows)[:, None] & (column < SIZE)[None, :]
    inputs = tl.load(inputs_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_UPDATE:
        inputs += tl.load(update_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(sum_ptr + at, inputs, mask=inside)
    weight = tl.load(weight_ptr + column, mask=column < SIZE, other=0.0) + OFFSET
    scale = tl.rsqrt(tl.sum(inputs * inputs, 1) / SIZE + eps)
    outputs = inputs * scale[:, None] * weight[None, :]
    tl.store(outputs_ptr + at, outputs.to(outputs_ptr.dtype.element_ty), mask=inside)


@triton.jit
def norm_backward(
    inputs_ptr,
    weight_ptr,
    gradient_ptr,
    of_sum_ptr,
    of_inputs_ptr,
    of_update_ptr,
    of_weight_ptr,
    num_rows,
    eps,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    OFFSET: tl.constexpr,
    HAS_UPDATE: tl.constexpr,
):
    """Program (one of P): the gradients of every P-th tile's inputs and update, and what these tiles add to the
    weight's: [P, SIZE]. Where there is an update, ``inputs`` are the sum, and ``of_sum`` is the gradient of its other
    uses."""
    column = tl.arange(0, BLOCK)
    weight = tl.load(weight_ptr + column, mask=column < SIZE, other=0.0) + OFFSET
    of_weight = tl.zeros((BLOCK,), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(num_rows, ROWS), tl.num_programs(0)):
        row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        at = row[:, None] * SIZE + column[None, :]
        inside = (row < num_rows)[:, None] & (column < SIZE)[None, :]
        inputs = tl.load(inputs_ptr + at, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.load(gradient_ptr + at, mask=inside, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(inputs * inputs, 1) / SIZE + eps)[:, None]
        normed = inputs * scale
        of_weight += tl.sum(gradient * normed, 0)
        of_normed = gradient * weight[None, :]
        of_inputs = scale * (of_normed - normed * (tl.sum(of_normed * normed, 1) / SIZE)[:, None])
        if HAS_UPDATE:
            of_inputs += tl.load(of_sum_ptr + at, mask=inside, other=0.0)
            tl.store(of_update_ptr + at, of_inputs.to(of_update_ptr.dtype.element_ty), mask=inside)
        tl.store(of_inputs_ptr + at, of_inputs.to(of_inputs_ptr.dtype.element_ty), mask=inside)
    tl.store(of_weight_ptr + tl.program_id(0) * SIZE + column, of_weight, mask=column < SIZE)


@triton.jit
def _places(
    row, num_rows, NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    """Of some heads of packed queries, keys and values: the columns of a first half, the tokens, where these columns
    lie in queries, keys and values by themselves, and which of them do; [rows, columns]."""
    column = tl.arange(0, BLOCK)[None, :]
    token = (row // (NUM_HEADS + 2 * NUM_KV_HEADS))[:, None]
    head = (row % (NUM_HEADS + 2 * NUM_KV_HEADS))[:, None]
    inside = (row < num_rows)[:, None] & (column < SIZE // 2)
    query_at = (token * NUM_HEADS + head) * SIZE + column
    key_at = (token * NUM_KV_HEADS + head - NUM_HEADS) * SIZE + column
    value_at = key_at - NUM_KV_HEADS * SIZE
    is_query, is_value = inside & (head < NUM_HEADS), inside & (head >= NUM_HEADS + NUM_KV_HEADS)
    is_key = inside & (head >= NUM_HEADS) & (head < NUM_HEADS + NUM_KV_HEADS)
    return column, token, (query_at, key_at, value_at), (is_query, is_key, is_value)


@triton.jit
def _load_halves(pointer, row, column, inside, SIZE: tl.constexpr):
    """Both halves of some heads, [rows, columns] float32, and 0 outside."""
    at = row[:, None] * SIZE + column
    first = tl.load(pointer + at, mask=inside, other=0.0).to(tl.float32)
    return first, tl.load(pointer + at + SIZE // 2, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _load_rotation(cos_ptr, sin_ptr, position, column, inside, SIZE: tl.constexpr):
    """Cosines and sines; outside, those that turn nothing."""
    at = position * SIZE + column
    cos = tl.load(cos_ptr + at, mask=inside, other=1.0).to(tl.float32)
    return cos, tl.load(sin_ptr + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _load_norms(query_ptr, key_ptr, column, is_query, is_key):
    """The weights of the norms of queries and keys, and 1 for values; [rows, columns]."""
    of_query = tl.load(query_ptr + column, mask=is_query, other=0.0)
    of_key = tl.load(key_ptr + column, mask=is_key, other=0.0)
    return tl.where(is_query | is_key, of_query + of_key, 1.0)


@triton.jit
def _load_split(queries_ptr, keys_ptr, values_ptr, places, masks):
    """[rows, columns] float32, of which each row lies in one of the three."""
    found = tl.load(queries_ptr + places[0], mask=masks[0], other=0.0).to(tl.float32)
    found += tl.load(keys_ptr + places[1], mask=masks[1], other=0.0).to(tl.float32)
    return found + tl.load(values_ptr + places[2], mask=masks[2], other=0.0).to(tl.float32)


@triton.jit
def _store_split(queries_ptr, keys_ptr, values_ptr, places, masks, found):
    tl.store(queries_ptr + places[0], found, mask=masks[0])
    tl.store(keys_ptr + places[1], found, mask=masks[1])
    tl.store(values_ptr + places[2], found, mask=masks[2])


@triton.jit
def rotate_forward(
    packed_ptr,
    query_norm_ptr,
    key_norm_ptr,
    cos_ptr,
    sin_ptr,
    queries_ptr,
    keys_ptr,
    values_ptr,
    num_rows,
    num_positions,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """Program (tile of heads): queries, keys and values of a token lie side by side. Takes them apart, with the RMS
    norm, where there is one, and the rotary embedding of queries and keys."""
    HALF: tl.constexpr = SIZE // 2
    DTYPE: tl.constexpr = queries_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column, token, places, masks = _places(row, num_rows, NUM_HEADS, NUM_KV_HEADS, SIZE, HALF_BLOCK)
    is_query, is_key, is_value = masks
    first, second = _load_halves(packed_ptr, row, column, is_query | is_key | is_value, SIZE)
    if HAS_NORM:
        scale = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / SIZE + eps)[:, None]
        scale = tl.where(is_value, 1.0, scale)
        first *= scale * _load_norms(query_norm_ptr, key_norm_ptr, column, is_query, is_key)
        second *= scale * _load_norms(query_norm_ptr + HALF, key_norm_ptr + HALF, column, is_query, is_key)
    cos, sin = _load_rotation(cos_ptr, sin_ptr, token % num_positions, column, is_query | is_key, SIZE)
    rotated, rotated_second = (first * cos - second * sin).to(DTYPE), (second * cos + first * sin).to(DTYPE)
    _store_split(queries_ptr, keys_ptr, values_ptr, places, masks, rotated)
    _store_split(queries_ptr + HALF, keys_ptr + HALF, values_ptr + HALF, places, masks, rotated_second)


@triton.jit
def rotate_backward(
    packed_ptr,
    query_norm_ptr,
    key_norm_ptr,
    cos_ptr,
    sin_ptr,
    queries_ptr,
    keys_ptr,
    values_ptr,
    of_packed_ptr,
    of_norms_ptr,
    num_rows,
    num_positions,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """Program (one of P): from the gradients of queries, keys and values that of what they were taken from, for every
    P-th tile; where there are norms, what these tiles add to the gradients of both weights: [P, 2, SIZE]."""
    HALF: tl.constexpr = SIZE // 2
    DTYPE: tl.constexpr = of_packed_ptr.dtype.element_ty
    of_query_norm, of_second_query_norm = tl.zeros((HALF_BLOCK,), tl.float32), tl.zeros((HALF_BLOCK,), tl.float32)
    of_key_norm, of_second_key_norm = tl.zeros((HALF_BLOCK,), tl.float32), tl.zeros((HALF_BLOCK,), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(num_rows, ROWS), tl.num_programs(0)):
        row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        column, token, places, masks = _places(row, num_rows, NUM_HEADS, NUM_KV_HEADS, SIZE, HALF_BLOCK)
        is_query, is_key, is_value = masks
        turned = _load_split(queries_ptr, keys_ptr, values_ptr, places, masks)
        turned_second = _load_split(queries_ptr + HALF, keys_ptr + HALF, values_ptr + HALF, places, masks)
        cos, sin = _load_rotation(cos_ptr, sin_ptr, token % num_positions, column, is_query | is_key, SIZE)
        of_first, of_second = turned * cos + turned_second * sin, turned_second * cos - turned * sin
        if HAS_NORM:  # a value is loaded as zeros, with which its gradient passes through
            first, second = _load_halves(packed_ptr, row, column, is_query | is_key, SIZE)
            scale = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / SIZE + eps)[:, None]
            scale = tl.where(is_value, 1.0, scale)
            first, second = first * scale, second * scale
            of_query_norm += tl.sum(tl.where(is_query, of_first * first, 0.0), 0)
            of_second_query_norm += tl.sum(tl.where(is_query, of_second * second, 0.0), 0)
            of_key_norm += tl.sum(tl.where(is_key, of_first * first, 0.0), 0)
            of_second_key_norm += tl.sum(tl.where(is_key, of_second * second, 0.0), 0)
            of_first *= _load_norms(query_norm_ptr, key_norm_ptr, column, is_query, is_key)
            of_second *= _load_norms(query_norm_ptr + HALF, key_norm_ptr + HALF, column, is_query, is_key)
            along = ((tl.sum(of_first * first, 1) + tl.sum(of_second * second, 1)) / SIZE)[:, None]
            of_first, of_second = scale * (of_first - first * along), scale * (of_second - second * along)
        at, inside = row[:, None] * SIZE + column, is_query | is_key | is_value
        tl.store(of_packed_ptr + at, of_first.to(DTYPE), mask=inside)
        tl.store(of_packed_ptr + at + HALF, of_second.to(DTYPE), mask=inside)
    if HAS_NORM:
        column = tl.arange(0, HALF_BLOCK)
        at = of_norms_ptr + tl.program_id(0) * (2 * SIZE) + column
        tl.store(at, of_query_norm, mask=column < HALF)
        tl.store(at + HALF, of_second_query_norm, mask=column < HALF)
        tl.store(at + SIZE, of_key_norm, mask=column < HALF)
        tl.store(at + SIZE + HALF, of_second_key_norm, mask=column < HALF)


@triton.jit
def _gate(gate, IS_GELU: tl.constexpr):
    """Both activations are gate * sigmoid(z): GELU's 0.5 * (1 + tanh(y)) is sigmoid(2 y). The sigmoid, and the
    derivative of z."""
    steepness, slope = gate, 1.0
    if IS_GELU:
        steepness = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
        slope = 1.5957691216057308 * (1.0 + 0.134145 * gate * gate)
    return 1.0 / (1.0 + tl.exp(-steepness)), slope


@triton.jit
def gated_forward(
    packed_ptr, outputs_ptr, num_elements, SIZE: tl.constexpr, BLOCK: tl.constexpr, IS_GELU: tl.constexpr
):
    """Program (block): ``silu(gate) * up``, or GELU by the hyperbolic tangent; the two of a row lie side by side."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate_at, inside = at + at // SIZE * SIZE, at < num_elements
    gate = tl.load(packed_ptr + gate_at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(packed_ptr + gate_at + SIZE, mask=inside, other=0.0).to(tl.float32)
    share, _ = _gate(gate, IS_GELU)
    tl.store(outputs_ptr + at, (gate * share * up).to(outputs_ptr.dtype.element_ty), mask=inside)


@triton.jit
def gated_backward(
    packed_ptr,
    gradient_ptr,
    of_packed_ptr,
    num_elements,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_GELU: tl.constexpr,
):
    """Program (block): the gradients of both."""
    DTYPE: tl.constexpr = of_packed_ptr.dtype.element_ty
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate_at, inside = at + at // SIZE * SIZE, at < num_elements
    gate = tl.load(packed_ptr + gate_at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(packed_ptr + gate_at + SIZE, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(gradient_ptr + at, mask=inside, other=0.0).to(tl.float32)
    share, slope = _gate(gate, IS_GELU)
    of_gate = gradient * up * share * (1.0 + gate * (1.0 - share) * slope)
    tl.store(of_packed_ptr + gate_at, of_gate.to(DTYPE), mask=inside)
    tl.store(of_packed_ptr + gate_at + SIZE, (gradient * gate * share).to(DTYPE), mask=inside)
