// One layer's attention over a paged KV cache: norm and rotation, writing to the cache, causal attention.
//
// Legend: T tokens, S sequences, N query heads, K key-value heads, G = N / K, D head size, U = Products::UNIT.
// Keys are [blocks, K, D / U, W, U] and values [blocks, K, block_size / U, E, U], where W and E are block_size and D
// rounded up to whole vectors (and block_size to whole units). So a vector holds one component of 16 keys, or 16
// components of one value, or two of each for bfloat16: scores need no sum across a vector. A cache of int8 has a
// scale for each token and head, which scores and weights are multiplied by.
//
// The work is cut into tiles of rows, a row being one query head of one token: a tile has all query heads of a
// key-value head, for some tokens of one sequence, or for one token of each of several sequences that begin alike,
// which read what they share once. The softmax runs along the context in spans that begin at multiples of their
// length (arXiv 2205.14135), and every sum in order: what a row gets does not depend on its tile.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "team.h"
#include "vector.h"

namespace rlserve {

// What all layers of a kind share in one step. Mirrored by StepArguments in cpu_kernel.py.
struct Step {
    int32_t num_tokens, num_sequences, num_heads, num_kv_heads, head_dim, block_size, table_width;
    int32_t window;      // tokens back that attention reaches, the token itself included; 0 for all
    float eps, scale;
    float softcap;       // scores become softcap * tanh(score / softcap); 0 leaves them
    float norm_offset;   // added to the weights of the head norms
    const int32_t* positions;     // [T]
    const int64_t* cache_slots;   // [T]
    const int32_t* query_starts;  // [S + 1]
    const int32_t* table_rows;    // [S]
    const int32_t* block_tables;  // [rows, table_width]
    const float* rotation;        // [positions, 2, D / 2]

    const int32_t* table(int sequence) const { return block_tables + (long)table_rows[sequence] * table_width; }
};

// The cache of one layer. Mirrored by LayerCache in cpu_kernel.py.
struct LayerCache {
    void *keys, *values;
    float* scales;  // [blocks, K, 2, W] of keys and of values, for a cache of int8; else null
};

constexpr int SPAN = 128;            // context tokens between two corrections of the running softmax
constexpr int TILE_QUERY_ROWS = 16;  // rows that read the cache together
constexpr int MAX_ROWS = 8;          // rows whose sums are in registers together
constexpr float MASKED = -1e30f;

inline int span_of(int block_size) { return std::max(1, SPAN / block_size) * block_size; }

// The tokens [first, end) of the step; either of one sequence, or one of each of the sequences from `sequence` on,
// whose context begins alike for the first `num_shared` tokens, whole spans.
struct WorkItem {
    int sequence, first, end;
    int num_shared;
    bool is_run;
};

// Tiles of a step, the same for all layers.
inline std::vector<WorkItem> plan(const Step& step) {
    const int tile_tokens = std::max(1, TILE_QUERY_ROWS / (step.num_heads / step.num_kv_heads));
    const int span = span_of(step.block_size);
    const auto is_single = [&](int s) { return step.query_starts[s + 1] - step.query_starts[s] == 1; };
    const auto shared_with_next = [&](int s) {  // whole spans that two neighbours both have
        const int context = std::min(step.positions[step.query_starts[s]], step.positions[step.query_starts[s + 1]]) + 1;
        const int32_t *one = step.table(s), *other = step.table(s + 1);
        const int num_blocks = context / step.block_size;
        return (int)(std::mismatch(one, one + num_blocks, other).first - one) * step.block_size / span * span;
    };
    std::vector<WorkItem> items;
    for (int s = 0; s < step.num_sequences; ++s) {
        int num_shared = 0, end = s + 1;
        while (end < step.num_sequences && end - s < tile_tokens && is_single(end - 1) && is_single(end)) {
            const int shared = shared_with_next(end - 1);
            if (shared == 0 || shared < num_shared) break;
            if (num_shared == 0) num_shared = shared;
            ++end;
        }
        if (end > s + 1) {
            items.push_back({s, step.query_starts[s], step.query_starts[end], num_shared, true});
            s = end - 1;
            continue;
        }
        for (int first = step.query_starts[s]; first < step.query_starts[s + 1]; first += tile_tokens)
            items.push_back({s, first, std::min(step.query_starts[s + 1], first + tile_tokens), 0, false});
    }
    return items;
}

template <typename Element>
void norm_and_rotate(const Step& step, const Element* head, const Element* weight, const float* rotation, float* out) {
    const int D = step.head_dim, half = D / 2;
    Vector squares{};
    float total = 0.0f;
    int d = 0;
    for (; weight && d + LANES <= D; d += LANES) squares += load(head + d) * load(head + d);
    for (; weight && d < D; ++d) total += to_float(head[d]) * to_float(head[d]);
    const float scale = weight ? 1.0f / std::sqrt((total + sum(squares)) / D + step.eps) : 1.0f;
    const float *cosines = rotation, *sines = rotation + half;
    for (d = 0; d + LANES <= half; d += LANES) {
        Vector first = load(head + d), second = load(head + d + half);
        if (weight) {
            first *= scale * (load(weight + d) + step.norm_offset);
            second *= scale * (load(weight + d + half) + step.norm_offset);
        }
        store(out + d, first * load(cosines + d) - second * load(sines + d));
        store(out + d + half, second * load(cosines + d) + first * load(sines + d));
    }
    for (; d < half; ++d) {
        const float first = to_float(head[d]) * scale * (weight ? to_float(weight[d]) + step.norm_offset : 1.0f);
        const float second =
            to_float(head[d + half]) * scale * (weight ? to_float(weight[d + half]) + step.norm_offset : 1.0f);
        out[d] = first * cosines[d] - second * sines[d];
        out[d + half] = second * cosines[d] + first * sines[d];
    }
}

// Writes numbers `stride` apart, as integers from -127 to 127 times the scale.
inline void quantise(const float* numbers, int size, int8_t* out, long stride, float* scale) {
    float top = 0.0f;
    for (int d = 0; d < size; ++d) top = std::max(top, std::fabs(numbers[d]));
    *scale = top / 127.0f;
    const float inverse = top > 0 ? 127.0f / top : 0.0f;
    for (int d = 0; d < size; ++d) out[d * stride] = (int8_t)std::lrintf(numbers[d] * inverse);
}

// Work space of one thread.
template <typename Factor>
struct Scratch {
    std::vector<float> scores, sums, maxima, totals, head;
    std::vector<Factor> queries, weights;
    std::vector<const void*> columns, values;

    Scratch(int rows, int D, int width)
        : scores((long)rows * width), sums((long)rows * round_up(D)), maxima(rows), totals(rows), head(D),
          queries((long)rows * D), weights((long)rows * width), columns(width / LANES), values(width / LANES) {}
};

// One layer.
template <typename Element, typename Cached>
struct Attention {
    typedef Products<Cached> P;
    typedef typename P::Factor Factor;
    static constexpr int UNIT = P::UNIT;
    static constexpr bool IS_SCALED = std::is_same<Cached, int8_t>::value;

    const Step& step;
    const Element *query_norm, *key_norm;
    const LayerCache& cache;
    const int D = step.head_dim, K = step.num_kv_heads, G = step.num_heads / step.num_kv_heads;
    const int W = round_up(step.block_size), E = round_up(D);
    const int value_rows = (step.block_size + UNIT - 1) / UNIT * UNIT;
    const int span = span_of(step.block_size), width = span / step.block_size * W + 4 * LANES;

    Cached* keys_of(long block, int kv_head) const {
        return static_cast<Cached*>(cache.keys) + (block * K + kv_head) * D * W;
    }
    Cached* values_of(long block, int kv_head) const {
        return static_cast<Cached*>(cache.values) + (block * K + kv_head) * value_rows * E;
    }
    float* key_scales(long block, int kv_head) const { return cache.scales + (block * K + kv_head) * 2 * W; }
    float* value_scales(long block, int kv_head) const { return key_scales(block, kv_head) + W; }

    void run(Team& team, const std::vector<WorkItem>& items, Element* qkv, Element* out) const {
        Scratch<Factor> scratch(std::max(TILE_QUERY_ROWS, G), D, width);
        team.share(step.num_tokens, std::max(1, std::min(16, step.num_tokens / (2 * team.size()))),
                   [&](int token) { prepare(token, qkv, scratch.head.data()); });
        team.share((int)items.size() * K, 1, [&](int i) { attend(items[i / K], i % K, qkv, out, scratch); });
    }

    // Rotates the queries in place, and writes keys and values of one token to the cache.
    void prepare(int token, Element* qkv, float* head) const {
        const int N = step.num_heads;
        Element* row = qkv + (long)token * (N + 2 * K) * D;
        const float* rotation = step.rotation + (long)step.positions[token] * D;
        for (int n = 0; n < N; ++n) {
            norm_and_rotate(step, row + n * D, query_norm, rotation, head);
            for (int d = 0; d < D; ++d) assign(row[n * D + d], head[d]);
        }
        const long block = step.cache_slots[token] / step.block_size, offset = step.cache_slots[token] % step.block_size;
        for (int k = 0; k < K; ++k) {
            norm_and_rotate(step, row + (N + k) * D, key_norm, rotation, head);
            const Element* value = row + (N + K + k) * D;
            Cached* key_to = keys_of(block, k) + offset * UNIT;
            Cached* value_to = values_of(block, k) + offset / UNIT * UNIT * E + offset % UNIT;
            if constexpr (IS_SCALED) {
                quantise(head, D, key_to, W, key_scales(block, k) + offset);
                for (int d = 0; d < D; ++d) head[d] = to_float(value[d]);
                quantise(head, D, value_to, 1, value_scales(block, k) + offset);
            } else {
                for (int d = 0; d < D; ++d) assign(key_to[(long)d / UNIT * UNIT * W + d % UNIT], head[d]);
                for (int d = 0; d < D; ++d) value_to[(long)d * UNIT] = value[d];
            }
        }
    }

    int window_start(int token) const {
        return step.window ? std::max(0, step.positions[token] + 1 - step.window) : 0;
    }

    // All rows of a tile: row r is head r % G of its key-value head, for token first + r / G.
    void attend(const WorkItem& item, int kv_head, const Element* qkv, Element* out, Scratch<Factor>& scratch) const {
        const int rows = (item.end - item.first) * G, stride = (step.num_heads + 2 * K) * D;
        for (int r = 0; r < rows; ++r) {
            const Element* query = qkv + (long)(item.first + r / G) * stride + (kv_head * G + r % G) * D;
            for (int d = 0; d < D; ++d) convert(query[d], scratch.queries[(long)r * D + d]);
        }
        std::fill_n(scratch.sums.begin(), (long)rows * E, 0.0f);
        std::fill_n(scratch.maxima.begin(), rows, MASKED);
        std::fill_n(scratch.totals.begin(), rows, 0.0f);
        const Rows all{kv_head, item.first, 0, rows};
        if (item.is_run) {
            int start = window_start(item.first);
            for (int token = item.first; token < item.end; ++token) start = std::min(start, window_start(token));
            attend_context(all, step.table(item.sequence), start, item.num_shared, scratch);
            for (int token = item.first; token < item.end; ++token) {
                const Rows own{kv_head, item.first, (token - item.first) * G, G};
                attend_context(own, step.table(item.sequence + token - item.first),
                               std::max(item.num_shared, window_start(token)), step.positions[token] + 1, scratch);
            }
        } else {
            attend_context(all, step.table(item.sequence), window_start(item.first), step.positions[item.end - 1] + 1,
                           scratch);
        }
        for (int r = 0; r < rows; ++r) {
            Element* row = out + ((long)(item.first + r / G) * step.num_heads + kv_head * G + r % G) * D;
            for (int d = 0; d < D; ++d) assign(row[d], scratch.sums[(long)r * E + d] / scratch.totals[r]);
        }
    }

    static void convert(float from, float& to) { to = from; }
    static void convert(bfloat16 from, float& to) { to = to_float(from); }
    static void convert(bfloat16 from, bfloat16& to) { to = from; }

    // Some rows of a tile, from row `begin` of it on.
    struct Rows {
        int kv_head, first_token, begin, count;
    };

    void attend_context(const Rows& rows, const int32_t* table, int start, int end, Scratch<Factor>& scratch) const {
        for (start = start / span * span; start < end; start += span)
            attend_span(rows, table, start, std::min(end, start + span), scratch);
    }

    // Context positions [start, end); start is the first of a block.
    void attend_span(const Rows& rows, const int32_t* table, int start, int end, Scratch<Factor>& scratch) const {
        const int num_blocks = (end - start + step.block_size - 1) / step.block_size;
        const int32_t* blocks = table + start / step.block_size;
        const int vectors = W / LANES, num_columns = num_blocks * vectors;
        for (int b = 0; b < num_blocks; ++b) {
            for (int v = 0; v < vectors; ++v)
                scratch.columns[b * vectors + v] = keys_of(blocks[b], rows.kv_head) + v * LANES * UNIT;
            scratch.values[b] = values_of(blocks[b], rows.kv_head);
        }
        for (int c = num_columns; c % 4 && c < (int)scratch.columns.size(); ++c)
            scratch.columns[c] = scratch.columns[num_columns - 1];  // so that they go in fours
        for_rows(rows, [&](auto count, int r) { score<decltype(count)::value>(r, num_columns, scratch); });
        for (int r = rows.begin; r < rows.begin + rows.count; ++r)
            soften_row(r, rows, blocks, num_blocks, start, scratch);
        for_rows(rows, [&](auto count, int r) {
            for (int e = 0; e < E; e += 4 * LANES) switch (std::min(4, (E - e) / LANES)) {
                case 4: add_values<decltype(count)::value, 4>(r, e, end - start, scratch); break;
                case 3: add_values<decltype(count)::value, 3>(r, e, end - start, scratch); break;
                case 2: add_values<decltype(count)::value, 2>(r, e, end - start, scratch); break;
                default: add_values<decltype(count)::value, 1>(r, e, end - start, scratch);
            }
        });
    }

    // scores[r][c] = sum over d of queries[r][d] * keys[c][d], for ROWS rows and all keys of the span.
    template <int ROWS>
    void score(int r, int num_columns, Scratch<Factor>& scratch) const {
        constexpr int COLUMNS = ROWS == MAX_ROWS ? 2 : 4;
        const Factor* queries = &scratch.queries[(long)r * D];
        for (int c = 0; c < num_columns; c += COLUMNS) {
            Vector sums[ROWS][COLUMNS] = {};
            const Cached* columns[COLUMNS];
            for (int i = 0; i < COLUMNS; ++i) columns[i] = static_cast<const Cached*>(scratch.columns[c + i]);
            for (int d = 0; d < D; d += UNIT) {
                typename P::Units keys[COLUMNS];
                for (int i = 0; i < COLUMNS; ++i) keys[i] = P::units(columns[i] + (long)d * W);
                for (int row = 0; row < ROWS; ++row) {
                    const typename P::Scalar query = P::scalar(queries + (long)row * D + d);
                    for (int i = 0; i < COLUMNS; ++i) sums[row][i] = P::multiply_add(sums[row][i], keys[i], query);
                }
            }
            for (int row = 0; row < ROWS; ++row)
                for (int i = 0; i < COLUMNS; ++i)
                    store(&scratch.scores[(long)(r + row) * width + (c + i) * LANES], sums[row][i]);
        }
    }

    // Scores to weights, relative to the largest score so far; what was summed before is corrected to it.
    void soften_row(int r, const Rows& rows, const int32_t* blocks, int num_blocks, int start,
                    Scratch<Factor>& scratch) const {
        const int token = rows.first_token + r / G, size = num_blocks * W;
        float* scores = &scratch.scores[(long)r * width];
        for (int b = 0; b < num_blocks; ++b) {
            const float* scales = IS_SCALED ? key_scales(blocks[b], rows.kv_head) : nullptr;
            finish_block(scores + b * W, scales, window_start(token) - start - b * step.block_size,
                         step.positions[token] + 1 - start - b * step.block_size);
        }
        Vector best = broadcast(scratch.maxima[r]);
        for (int i = 0; i < size; i += LANES) best = larger(load(scores + i), best);
        const float maximum = largest(best);
        Vector total{};
        for (int i = 0; i < size; i += LANES) {
            const Vector weight = exponential(load(scores + i) - maximum);
            total += weight;
            if constexpr (IS_SCALED)
                store(&scratch.weights[(long)r * width + i],
                      weight * load(value_scales(blocks[i / W], rows.kv_head) + i % W));
            else
                store(&scratch.weights[(long)r * width + i], weight);
        }
        const float correction = std::exp(scratch.maxima[r] - maximum);
        scratch.maxima[r] = maximum;
        scratch.totals[r] = scratch.totals[r] * correction + sum(total);
        float* sums = &scratch.sums[(long)r * E];
        for (int e = 0; e < E; e += LANES) store(sums + e, load(sums + e) * correction);
    }

    // Scales and caps the scores of one block, and hides those outside [from, to), and the lanes that only fill up
    // the last vector. A row may see nothing of its first span: the weights it then gets are undone by the correction
    // to its first real score.
    void finish_block(float* scores, const float* scales, int from, int to) const {
        to = std::min(to, step.block_size);
        for (int i = 0; i < W; i += LANES) {
            Vector score = load(scores + i) * step.scale;
            if (scales) score *= load(scales + i);
            if (step.softcap > 0) score = hyperbolic_tangent(score * (1.0f / step.softcap)) * step.softcap;
            store(scores + i, score);
        }
        for (int i = 0; i < std::min(from, W); ++i) scores[i] = MASKED;
        for (int i = std::max(0, to); i < W; ++i) scores[i] = MASKED;
    }

    // sums[r][e] += sum over t of weights[r][t] * values[t][e], for ROWS rows, VECTORS * 16 components and all values
    // of the span.
    template <int ROWS, int VECTORS>
    void add_values(int r, int e, int num_values, Scratch<Factor>& scratch) const {
        if constexpr (ROWS * VECTORS > 16) {
            for (int row = 0; row < ROWS; row += ROWS / 2) add_values<ROWS / 2, VECTORS>(r + row, e, num_values, scratch);
        } else {
            Vector sums[ROWS][VECTORS] = {};
            for (int b = 0; num_values > 0; ++b, num_values -= step.block_size) {
                const Cached* values = static_cast<const Cached*>(scratch.values[b]) + e * UNIT;
                const Factor* weights = &scratch.weights[(long)r * width + b * W];
                const int count = std::min(num_values, step.block_size);
                int t = 0;
                for (; t + UNIT <= count; t += UNIT) add_unit<ROWS, VECTORS, false>(values, weights, t, sums);
                if (t < count) add_unit<ROWS, VECTORS, true>(values, weights, t, sums);
            }
            for (int row = 0; row < ROWS; ++row)
                for (int v = 0; v < VECTORS; ++v) {
                    float* place = &scratch.sums[(long)(r + row) * E + e + v * LANES];
                    store(place, load(place) + sums[row][v]);
                }
        }
    }

    // The last unit may be half full: what is behind it was never written and may be anything.
    template <int ROWS, int VECTORS, bool IS_LAST>
    void add_unit(const Cached* values, const Factor* weights, int t, Vector (&sums)[ROWS][VECTORS]) const {
        typename P::Units units[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            units[v] = P::units(values + (long)t * E + v * LANES * UNIT);
            if constexpr (IS_LAST) units[v] = first_of_units(units[v]);
        }
        for (int row = 0; row < ROWS; ++row) {
            const typename P::Scalar weight = P::scalar(weights + (long)row * width + t);
            for (int v = 0; v < VECTORS; ++v) sums[row][v] = P::multiply_add(sums[row][v], units[v], weight);
        }
    }

    template <int COUNT>
    struct Count {
        static constexpr int value = COUNT;
    };

    // Calls body with groups of eight, four, two and one rows.
    template <typename Body>
    static void for_rows(const Rows& rows, Body body) {
        int r = rows.begin;
        const int end = rows.begin + rows.count;
        for (; r + 8 <= end; r += 8) body(Count<8>{}, r);
        for (; r + 4 <= end; r += 4) body(Count<4>{}, r);
        for (; r + 2 <= end; r += 2) body(Count<2>{}, r);
        for (; r < end; ++r) body(Count<1>{}, r);
    }
};

}  // namespace rlserve
