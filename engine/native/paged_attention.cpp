// One layer's attention over a paged KV cache: norm and rotation, writing to the cache, causal attention.
//
// Legend: T tokens, S sequences, N query heads, K key-value heads, G = N / K, D head size.
// Keys are [blocks, K, D, W] and values [blocks, K, block_size, E], where W and E are block_size and D rounded up
// to whole vectors. So a vector holds one component of 16 keys, and 16 components of one value: scores need no
// sum across a vector. A cache of int8 has a scale for each token and head, which scores and weights are multiplied by,
// so that nothing is converted in the inner loops but the numbers themselves. The work is cut into (sequence, key-value head, tile of queries); all query heads of a
// key-value head go together and read the cache once. The softmax runs along the context (arXiv 2205.14135).

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "vector.h"

namespace rlserve {

// What all layers of a kind share in one step. Mirrored by StepArguments in cpu_kernel.py.
struct Step {
    int32_t num_tokens, num_sequences, num_heads, num_kv_heads, head_dim, block_size, table_width, num_threads;
    int32_t window;      // tokens back that attention reaches, the token itself included; 0 for all
    int32_t tile_rows;   // query rows (tokens times G) of a tile, at least one token
    float eps, scale;
    float softcap;       // scores become softcap * tanh(score / softcap); 0 leaves them
    float norm_offset;   // added to the weights of the head norms
    const int32_t* positions;     // [T]
    const int64_t* cache_slots;   // [T]
    const int32_t* query_starts;  // [S + 1]
    const int32_t* table_rows;    // [S]
    const int32_t* block_tables;  // [rows, table_width]
    const float* rotation;        // [positions, 2, D / 2]
};

namespace {

constexpr int SPAN = 128;       // context tokens between two corrections of the running softmax
constexpr int SUMS = 8;         // independent running sums, which hide the latency of a multiply-add
constexpr float MASKED = -1e30f;

template <typename Element>
void norm_and_rotate(const Step& step, const Element* head, const Element* weight, const float* rotation, float* out) {
    const int half = step.head_dim / 2;
    float scale = 1.0f;
    if (weight) {
        Vector squares{};
        int d = 0;
        for (; d + LANES <= step.head_dim; d += LANES) squares += load(head + d) * load(head + d);
        float total = sum(squares);
        for (; d < step.head_dim; ++d) total += to_float(head[d]) * to_float(head[d]);
        scale = 1.0f / std::sqrt(total / step.head_dim + step.eps);
    }
    const float *cosines = rotation, *sines = rotation + half;
    for (int d = 0; d < half; ++d) {
        const float first = to_float(head[d]) * scale * (weight ? to_float(weight[d]) + step.norm_offset : 1.0f);
        const float second =
            to_float(head[d + half]) * scale * (weight ? to_float(weight[d + half]) + step.norm_offset : 1.0f);
        out[d] = first * cosines[d] - second * sines[d];
        out[d + half] = second * cosines[d] + first * sines[d];
    }
}

// The cache of one layer.
template <typename Cached>
struct Cache {
    Cached *keys, *values;
    float* scales;  // [blocks, K, 2, W] of keys and of values, for a cache of int8; else null

    float* key_scales(const Step& step, int64_t block, int kv_head) const {
        return scales + (block * step.num_kv_heads + kv_head) * 2 * round_up(step.block_size);
    }
    float* value_scales(const Step& step, int64_t block, int kv_head) const {
        return key_scales(step, block, kv_head) + round_up(step.block_size);
    }
};

// Writes numbers `stride` apart, as integers from -127 to 127 times the scale.
void quantise(const float* numbers, int size, int8_t* out, long stride, float* scale) {
    float top = 0.0f;
    for (int d = 0; d < size; ++d) top = std::max(top, std::fabs(numbers[d]));
    *scale = top / 127.0f;
    const float inverse = top > 0 ? 127.0f / top : 0.0f;
    for (int d = 0; d < size; ++d) out[d * stride] = (int8_t)std::lrintf(numbers[d] * inverse);
}

// Rotates the queries in place, and writes keys and values of one token to the cache.
template <typename Element, typename Cached>
void prepare_token(const Step& step, int token, Element* qkv, const Element* query_norm, const Element* key_norm,
                   const Cache<Cached>& cache, float* scratch) {
    const int D = step.head_dim, N = step.num_heads, K = step.num_kv_heads;
    const int W = round_up(step.block_size), E = round_up(D);
    Element* row = qkv + (long)token * (N + 2 * K) * D;
    const float* rotation = step.rotation + (long)step.positions[token] * D;
    for (int n = 0; n < N; ++n) {
        norm_and_rotate(step, row + n * D, query_norm, rotation, scratch);
        for (int d = 0; d < D; ++d) assign(row[n * D + d], scratch[d]);
    }
    const int64_t block = step.cache_slots[token] / step.block_size, offset = step.cache_slots[token] % step.block_size;
    for (int k = 0; k < K; ++k) {
        norm_and_rotate(step, row + (N + k) * D, key_norm, rotation, scratch);
        Cached* key = cache.keys + (block * K + k) * D * W + offset;
        Cached* value = cache.values + ((block * K + k) * step.block_size + offset) * E;
        if constexpr (std::is_same<Cached, int8_t>::value) {
            quantise(scratch, D, key, W, cache.key_scales(step, block, k) + offset);
            for (int d = 0; d < D; ++d) scratch[d] = to_float(row[(N + K + k) * D + d]);
            quantise(scratch, D, value, 1, cache.value_scales(step, block, k) + offset);
        } else {
            for (int d = 0; d < D; ++d) assign(key[(long)d * W], scratch[d]);
            std::memcpy(value, row + (N + K + k) * D, D * sizeof(Element));
        }
    }
}

// scores[r][lane] = sum over d of queries[r][d] * keys[d][lane], for ROWS rows and 16 keys.
template <int ROWS, typename Element>
void score_keys(const float* queries, int D, const Element* keys, int W, float* scores, int score_stride) {
    constexpr int PARTS = SUMS / ROWS;
    Vector sums[ROWS][PARTS] = {};
    int d = 0;
    for (; d + PARTS <= D; d += PARTS)
        for (int part = 0; part < PARTS; ++part) {
            const Vector key = load(keys + (long)(d + part) * W);
            for (int r = 0; r < ROWS; ++r) sums[r][part] += key * queries[r * D + d + part];
        }
    for (; d < D; ++d)
        for (int r = 0; r < ROWS; ++r) sums[r][0] += load(keys + (long)d * W) * queries[r * D + d];
    for (int r = 0; r < ROWS; ++r) {
        for (int part = 1; part < PARTS; ++part) sums[r][0] += sums[r][part];
        store(scores + (long)r * score_stride, sums[r][0]);
    }
}

// sums[r][e] += sum over t of weights[r][t] * values[t][e], for ROWS rows and VECTORS * 16 components.
template <int ROWS, int VECTORS, typename Element>
void add_values(const float* weights, int weight_stride, const Element* values, int E, int num_values, float* sums) {
    constexpr int PARTS = SUMS / ROWS / VECTORS > 1 ? SUMS / ROWS / VECTORS : 1;
    Vector totals[PARTS][ROWS][VECTORS] = {};
    int t = 0;
    for (; t + PARTS <= num_values; t += PARTS)
        for (int part = 0; part < PARTS; ++part)
            for (int v = 0; v < VECTORS; ++v) {
                const Vector value = load(values + (long)(t + part) * E + v * LANES);
                for (int r = 0; r < ROWS; ++r) totals[part][r][v] += value * weights[(long)r * weight_stride + t + part];
            }
    for (; t < num_values; ++t)
        for (int v = 0; v < VECTORS; ++v)
            for (int r = 0; r < ROWS; ++r)
                totals[0][r][v] += load(values + (long)t * E + v * LANES) * weights[(long)r * weight_stride + t];
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) {
            for (int part = 1; part < PARTS; ++part) totals[0][r][v] += totals[part][r][v];
            float* place = sums + (long)r * E + v * LANES;
            store(place, load(place) + totals[0][r][v]);
        }
}

template <int ROWS, typename Element>
void add_values(const float* weights, int weight_stride, const Element* values, int E, int num_values, float* sums) {
    int e = 0;
    for (; e + 4 * LANES <= E; e += 4 * LANES)
        add_values<ROWS, 4>(weights, weight_stride, values + e, E, num_values, sums + e);
    for (; e + 2 * LANES <= E; e += 2 * LANES)
        add_values<ROWS, 2>(weights, weight_stride, values + e, E, num_values, sums + e);
    for (; e < E; e += LANES) add_values<ROWS, 1>(weights, weight_stride, values + e, E, num_values, sums + e);
}

// Work space of one thread.
struct Scratch {
    std::vector<float> queries, scores, sums, maxima, totals;

    Scratch(int rows, int D, int width)
        : queries((long)rows * D), scores((long)rows * width), sums((long)rows * round_up(D)), maxima(rows), totals(rows) {}
};

// One tile: rows r = (token - first) * G + g attend to positions from the start of their window to their own.
template <typename Element, typename Cached>
struct Tile {
    static constexpr bool is_scaled = std::is_same<Cached, int8_t>::value;

    const Step& step;
    const Cache<Cached>& cache;
    int sequence, kv_head, first, last, group;
    Scratch& scratch;

    int rows() const { return (last - first) * group; }
    int position(int row) const { return step.positions[first + row / group]; }
    int window_start(int row) const { return step.window ? std::max(0, position(row) + 1 - step.window) : 0; }

    void run(const Element* qkv, Element* out) {
        const int D = step.head_dim, E = round_up(D), stride = (step.num_heads + 2 * step.num_kv_heads) * D;
        for (int r = 0; r < rows(); ++r) {
            const Element* query = qkv + (long)(first + r / group) * stride + (kv_head * group + r % group) * D;
            for (int d = 0; d < D; ++d) scratch.queries[r * D + d] = to_float(query[d]) * step.scale;
        }
        std::fill(scratch.sums.begin(), scratch.sums.end(), 0.0f);
        std::fill(scratch.maxima.begin(), scratch.maxima.end(), MASKED);
        std::fill(scratch.totals.begin(), scratch.totals.end(), 0.0f);
        const int num_context = step.positions[last - 1] + 1;
        const int first_visible = window_start(0) / step.block_size * step.block_size;
        const int span = std::max(1, SPAN / step.block_size) * step.block_size;
        for (int start = first_visible; start < num_context; start += span)
            attend_span(start, std::min(num_context, start + span));
        for (int r = 0; r < rows(); ++r) {
            Element* row = out + ((long)(first + r / group) * step.num_heads + kv_head * group + r % group) * D;
            for (int d = 0; d < D; ++d) assign(row[d], scratch.sums[(long)r * E + d] / scratch.totals[r]);
        }
    }

    // Context positions [start, end); start is the first of a block.
    void attend_span(int start, int end) {
        const int D = step.head_dim, E = round_up(D), W = round_up(step.block_size);
        const int num_blocks = (end - start + step.block_size - 1) / step.block_size, width = num_blocks * W;
        const int32_t* blocks =
            step.block_tables + (long)step.table_rows[sequence] * step.table_width + start / step.block_size;
        for (int b = 0; b < num_blocks; ++b) {
            const Cached* block_keys = cache.keys + ((long)blocks[b] * step.num_kv_heads + kv_head) * D * W;
            for (int lane = 0; lane < W; lane += LANES) score_block(block_keys + lane, b * W + lane, width);
            if constexpr (is_scaled) scale_block(cache.key_scales(step, blocks[b], kv_head), b * W, width);
            if (step.softcap > 0) cap_block(b * W, width);
            mask_block(start + b * step.block_size, b * W, width);
        }
        for (int r = 0; r < rows(); ++r) soften_row(r, width);
        for (int b = 0; b < num_blocks; ++b) {
            const int num_values = std::min(step.block_size, end - start - b * step.block_size);
            if constexpr (is_scaled) scale_block(cache.value_scales(step, blocks[b], kv_head), b * W, width);
            const Cached* block_values =
                cache.values + ((long)blocks[b] * step.num_kv_heads + kv_head) * step.block_size * E;
            for_rows([&](auto count, int r) {
                add_values<decltype(count)::value>(&scratch.scores[(long)r * width + b * W], width, block_values, E,
                                                   num_values, &scratch.sums[(long)r * E]);
            });
        }
    }

    void score_block(const Cached* block_keys, int column, int width) {
        for_rows([&](auto count, int r) {
            score_keys<decltype(count)::value>(&scratch.queries[(long)r * step.head_dim], step.head_dim, block_keys,
                                               round_up(step.block_size), &scratch.scores[(long)r * width + column], width);
        });
    }

    void scale_block(const float* scales, int column, int width) {
        for (int r = 0; r < rows(); ++r)
            for (int lane = 0; lane < round_up(step.block_size); lane += LANES) {
                float* scores = &scratch.scores[(long)r * width + column + lane];
                store(scores, load(scores) * load(scales + lane));
            }
    }

    void cap_block(int column, int width) {
        for (int r = 0; r < rows(); ++r)
            for (int lane = 0; lane < round_up(step.block_size); lane += LANES) {
                float* scores = &scratch.scores[(long)r * width + column + lane];
                store(scores, hyperbolic_tangent(load(scores) * (1.0f / step.softcap)) * step.softcap);
            }
    }

    // Hide what comes after a row's position or before its window, and the lanes that only fill up the last vector.
    // A row may see nothing of its first span: the weights it then gets are undone by the correction to its first
    // real score.
    void mask_block(int block_start, int column, int width) {
        const int W = round_up(step.block_size);
        for (int r = 0; r < rows(); ++r) {
            const int num_visible = std::max(0, std::min(step.block_size, position(r) + 1 - block_start));
            const int num_before = std::min(step.block_size, window_start(r) - block_start);
            float* scores = &scratch.scores[(long)r * width + column];
            for (int lane = 0; lane < num_before; ++lane) scores[lane] = MASKED;
            for (int lane = num_visible; lane < W; ++lane) scores[lane] = MASKED;
        }
    }

    // Scores to weights, relative to the largest score so far; what was summed before is corrected to it.
    void soften_row(int r, int width) {
        const int E = round_up(step.head_dim);
        float* scores = &scratch.scores[(long)r * width];
        Vector best = broadcast(scratch.maxima[r]);
        for (int i = 0; i < width; i += LANES) best = larger(load(scores + i), best);
        const float maximum = largest(best);
        Vector total{};
        for (int i = 0; i < width; i += LANES) {
            const Vector weight = exponential(load(scores + i) - maximum);
            store(scores + i, weight);
            total += weight;
        }
        const float correction = std::exp(scratch.maxima[r] - maximum);
        scratch.maxima[r] = maximum;
        scratch.totals[r] = scratch.totals[r] * correction + sum(total);
        float* sums = &scratch.sums[(long)r * E];
        for (int e = 0; e < E; e += LANES) store(sums + e, load(sums + e) * correction);
    }

    template <int COUNT>
    struct Count {
        static constexpr int value = COUNT;
    };

    // Calls body with groups of four, two and one rows.
    template <typename Body>
    void for_rows(Body body) {
        int r = 0;
        for (; r + 4 <= rows(); r += 4) body(Count<4>{}, r);
        for (; r + 2 <= rows(); r += 2) body(Count<2>{}, r);
        for (; r < rows(); ++r) body(Count<1>{}, r);
    }
};

struct WorkItem {
    int sequence, first, last;
};

template <typename Element, typename Cached>
void attend(const Step& step, Element* qkv, const Element* query_norm, const Element* key_norm,
            const Cache<Cached>& cache, Element* out) {
    const int group = step.num_heads / step.num_kv_heads, tile_tokens = std::max(1, step.tile_rows / group);
    std::vector<WorkItem> items;
    for (int s = 0; s < step.num_sequences; ++s)
        for (int first = step.query_starts[s]; first < step.query_starts[s + 1]; first += tile_tokens)
            items.push_back({s, first, std::min(step.query_starts[s + 1], first + tile_tokens)});
    const int num_items = (int)items.size() * step.num_kv_heads;
    const int width = std::max(1, SPAN / step.block_size) * round_up(step.block_size);
#pragma omp parallel num_threads(step.num_threads) if (step.num_threads > 1)
    {
        Scratch scratch(tile_tokens * group, step.head_dim, width);
        std::vector<float> head(step.head_dim);
#pragma omp for schedule(static)
        for (int t = 0; t < step.num_tokens; ++t)
            prepare_token(step, t, qkv, query_norm, key_norm, cache, head.data());
#pragma omp for schedule(dynamic, 4)
        for (int i = 0; i < num_items; ++i) {
            const WorkItem& item = items[i / step.num_kv_heads];
            Tile<Element, Cached>{step, cache, item.sequence, i % step.num_kv_heads, item.first, item.last, group, scratch}
                .run(qkv, out);
        }
    }
}

}  // namespace
}  // namespace rlserve

extern "C" {

#define RLSERVE_ATTEND(NAME, ELEMENT, CACHED)                                                                     \
    void NAME(const rlserve::Step* step, ELEMENT* qkv, const ELEMENT* query_norm, const ELEMENT* key_norm,        \
              CACHED* keys, CACHED* values, float* scales, ELEMENT* out) {                                        \
        rlserve::attend(*step, qkv, query_norm, key_norm, rlserve::Cache<CACHED>{keys, values, scales}, out);     \
    }

RLSERVE_ATTEND(attend_float32, float, float)
RLSERVE_ATTEND(attend_bfloat16, rlserve::bfloat16, rlserve::bfloat16)
RLSERVE_ATTEND(attend_int8_float32, float, int8_t)
RLSERVE_ATTEND(attend_int8_bfloat16, rlserve::bfloat16, int8_t)
}
