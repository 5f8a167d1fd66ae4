// One layer's attention over a paged KV cache: norm and rotation, writing to the cache, causal attention.
//
// Legend: T tokens, S sequences, N query heads, K key-value heads, G = N / K, D head size, U = Products::UNIT.
// Keys are [blocks, K, D / U, W, U] and values [blocks, K, block_size / U, E, U], where W and E are block_size and D
// rounded up to whole vectors (and block_size to whole units). So a vector holds one component of 16 keys, or 16
// components of one value, or two of each for bfloat16: scores need no sum across a vector. A cache of int8 has a
// scale for each token and head, which scores and weights are multiplied by.
//
// The work is cut into tiles of rows, a row being one query head of one token. The softmax runs along the context in
// spans that begin at multiples of their length (arXiv 2205.14135), and every sum in order: what a row gets does not
// depend on its tile.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "attention_plan.h"
#include "team.h"
#include "vector.h"

namespace rlserve {

constexpr int NUM_SUMS = LANES == 16 ? 16 : 8;  // vectors of sums that are in registers together
constexpr int MAX_COLUMNS = 4;                  // vectors of keys that are scored together
constexpr float MASKED = -1e30f;

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
template <typename Cached>
struct Scratch {
    typedef typename Products<Cached>::Factor Factor;

    std::vector<float> scores, sums, maxima, totals, head;
    std::vector<Factor> queries, weights;
    std::vector<const Cached*> columns, values;  // of the keys of 16 tokens, and of the blocks of values, of a span
    std::vector<int> tokens;

    Scratch(int rows, int D, int width)
        : scores((long)rows * width), sums((long)rows * round_up(D)), maxima(rows), totals(rows), head(D),
          queries((long)rows * D), weights((long)rows * width), columns(width / LANES + MAX_COLUMNS),
          values(width / LANES + MAX_COLUMNS),
          tokens(rows) {}
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
    const int span = span_of(step.block_size), width = span / step.block_size * W + MAX_COLUMNS * LANES;

    Cached* keys_of(long block, int kv_head) const {
        return static_cast<Cached*>(cache.keys) + (block * K + kv_head) * D * W;
    }
    Cached* values_of(long block, int kv_head) const {
        return static_cast<Cached*>(cache.values) + (block * K + kv_head) * value_rows * E;
    }
    float* key_scales(long block, int kv_head) const { return cache.scales + (block * K + kv_head) * 2 * W; }
    float* value_scales(long block, int kv_head) const { return key_scales(block, kv_head) + W; }

    void run(Team& team, const Plan& plan, Element* qkv, Element* out) const {
        Scratch<Cached> scratch(std::max(TILE_QUERY_ROWS, G), D, width);
        const int num_runs = (int)plan.run_ends.size();
        const int pays = RUN_TOKENS * num_runs / std::max(1, step.num_tokens);  // runs of about as many tokens
        team.share(num_runs, std::max(1, std::min(pays, num_runs / (2 * team.size()))), [&](int run) {
            prepare_run(run ? plan.run_ends[run - 1] : 0, plan.run_ends[run], qkv, scratch.head.data());
        });
        team.share((int)plan.items.size() * K, 1, [&](int i) {
            const WorkItem& item = plan.items[i / K];
            if (item.num_together)
                attend_together(item, &plan.order[item.first], i % K, qkv, out, scratch);
            else
                attend_alone(item, i % K, qkv, out, scratch);
        });
    }

    // Rotates the keys of some neighbours in place, and writes keys and values to the cache.
    void prepare_run(int first, int end, Element* qkv, float* head) const {
        for (int token = first; token < end; ++token) rotate(token, K, key_at(token, 0, qkv), key_norm, head);
        const long slot = step.cache_slots[first];
        bool is_whole = !IS_SCALED && LANES == RUN_TOKENS && sizeof(Element) * UNIT == sizeof(int32_t);
        is_whole = is_whole && end - first == RUN_TOKENS && slot % RUN_TOKENS == 0 && step.block_size % RUN_TOKENS == 0;
        is_whole = is_whole && D % (LANES * UNIT) == 0;
        if (!is_whole) {
            for (int token = first; token < end; ++token) write(token, qkv, head);
            return;
        }
        if constexpr (std::is_same<Element, Cached>::value) {
            const long block = slot / step.block_size, offset = slot % step.block_size;
            for (int k = 0; k < K; ++k) {
                write_keys(key_at(first, k, qkv), keys_of(block, k) + offset * UNIT);
                write_values(key_at(first, k, qkv) + (long)K * D, values_of(block, k) + offset * E);
            }
        }
    }

    long row_size() const { return (long)(step.num_heads + 2 * K) * D; }
    Element* key_at(int token, int kv_head, Element* qkv) const {
        return qkv + token * row_size() + (long)(step.num_heads + kv_head) * D;
    }

    // Some heads of a token, in place.
    void rotate(int token, int num_heads, Element* heads, const Element* norm, float* head) const {
        const float* rotation = step.rotation + (long)step.positions[token] * D;
        for (int n = 0; n < num_heads; ++n) {
            norm_and_rotate(step, heads + n * D, norm, rotation, head);
            convert(head, D, heads + n * D);
        }
    }

    void write(int token, Element* qkv, float* head) const {
        const long block = step.cache_slots[token] / step.block_size, offset = step.cache_slots[token] % step.block_size;
        for (int k = 0; k < K; ++k) {
            const Element *key = key_at(token, k, qkv), *value = key + (long)K * D;
            Cached* key_to = keys_of(block, k) + offset * UNIT;
            Cached* value_to = values_of(block, k) + offset / UNIT * UNIT * E + offset % UNIT;
            if constexpr (IS_SCALED) {
                convert(key, D, head);
                quantise(head, D, key_to, W, key_scales(block, k) + offset);
                convert(value, D, head);
                quantise(head, D, value_to, 1, value_scales(block, k) + offset);
            } else {
                for (int d = 0; d < D; ++d) key_to[(long)d / UNIT * UNIT * W + d % UNIT] = key[d];
                for (int d = 0; d < D; ++d) value_to[(long)d * UNIT] = value[d];
            }
        }
    }

    // Those of RUN_TOKENS tokens, whose units of neighbours along D go side by side.
    void write_keys(const Element* keys, Cached* to) const {
        for (int d = 0; d < D; d += LANES * UNIT) {
            IntVector units[LANES];
            for (int t = 0; t < LANES; ++t) std::memcpy(&units[t], keys + t * row_size() + d, sizeof units[t]);
            transpose(units);
            for (int i = 0; i < LANES; ++i) std::memcpy(to + (long)(d + i * UNIT) * W, &units[i], sizeof units[i]);
        }
    }

    // The same, and units go along the tokens.
    void write_values(const Element* values, Cached* to) const {
        for (int t = 0; t < RUN_TOKENS; t += UNIT)
            for (int d = 0; d < D; d += LANES) {
                const Element* from = values + t * row_size() + d;
                if constexpr (UNIT == 1)
                    store(to + (long)t * E + d, load(from));
                else
                    store_units(from, from + row_size(), to + (long)t * E + d * UNIT);
            }
    }

    static void store_units(const Element* first, const Element* second, Cached* to) {
        HalfVector halves[UNIT];
        std::memcpy(&halves[0], first, sizeof halves[0]);
        std::memcpy(&halves[1], second, sizeof halves[1]);
        const BitVector units = __builtin_convertvector(halves[0], BitVector) | __builtin_convertvector(halves[1], BitVector) << 16;
        std::memcpy(to, &units, sizeof units);
    }

    int window_start(int token) const {
        return step.window ? std::max(0, step.positions[token] + 1 - step.window) : 0;
    }

    // Some tokens of one sequence.
    void attend_alone(const WorkItem& item, int kv_head, Element* qkv, Element* out,
                      Scratch<Cached>& scratch) const {
        for (int token = item.first; token < item.end; ++token)
            begin_token((token - item.first) * G, token, kv_head, qkv, scratch);
        const Rows rows{kv_head, 0, (item.end - item.first) * G};
        attend_context(rows, step.table(item.sequence), window_start(item.first), step.positions[item.end - 1] + 1,
                       scratch);
        for (int token = item.first; token < item.end; ++token)
            end_token((token - item.first) * G, token, kv_head, out, scratch);
    }

    // One token each of some sequences: first what all share, then what each has of its own.
    void attend_together(const WorkItem& item, const int* sequences, int kv_head, Element* qkv, Element* out,
                         Scratch<Cached>& scratch) const {
        int start = step.positions[step.query_starts[sequences[0]]];
        for (int i = 0; i < item.num_together; ++i) {
            const int token = step.query_starts[sequences[i]];
            begin_token(i * G, token, kv_head, qkv, scratch);
            start = std::min(start, window_start(token));
        }
        attend_context({kv_head, 0, item.num_together * G}, step.table(sequences[0]), start, item.num_shared, scratch);
        for (int i = 0; i < item.num_together; ++i) {
            const int token = step.query_starts[sequences[i]];
            attend_context({kv_head, i * G, G}, step.table(sequences[i]),
                           std::max(item.num_shared, window_start(token)), step.positions[token] + 1, scratch);
            end_token(i * G, token, kv_head, out, scratch);
        }
    }

    // Rows r to r + G of a tile are to be the heads of a token, which are rotated in place.
    void begin_token(int r, int token, int kv_head, Element* qkv, Scratch<Cached>& scratch) const {
        Element* query = qkv + token * row_size() + (long)kv_head * G * D;
        rotate(token, G, query, query_norm, scratch.head.data());
        convert(query, (long)G * D, &scratch.queries[(long)r * D]);
        std::fill_n(&scratch.sums[(long)r * E], (long)G * E, 0.0f);
        std::fill_n(&scratch.maxima[r], G, MASKED);
        std::fill_n(&scratch.totals[r], G, 0.0f);
        std::fill_n(&scratch.tokens[r], G, token);
    }

    void end_token(int r, int token, int kv_head, Element* out, const Scratch<Cached>& scratch) const {
        Element* row = out + ((long)token * step.num_heads + (long)kv_head * G) * D;
        for (int g = 0; g < G; ++g) {
            const float factor = 1.0f / scratch.totals[r + g];
            scale_to(&scratch.sums[(long)(r + g) * E], factor, D, row + g * D);
        }
    }

    // Some rows of a tile, from row `begin` of it on.
    struct Rows {
        int kv_head, begin, count;
    };

    void attend_context(const Rows& rows, const int32_t* table, int start, int end, Scratch<Cached>& scratch) const {
        for (start = start / span * span; start < end; start += span)
            attend_span(rows, table, start, std::min(end, start + span), scratch);
    }

    // Context positions [start, end); start is the first of a block.
    void attend_span(const Rows& rows, const int32_t* table, int start, int end, Scratch<Cached>& scratch) const {
        const int num_blocks = (end - start + step.block_size - 1) / step.block_size;
        const int32_t* blocks = table + start / step.block_size;
        const int vectors = W / LANES, num_columns = num_blocks * vectors;
        for (int c = 0; c < num_columns + 2 * MAX_COLUMNS; ++c) {  // those past the end are only there to be asked for
            const int b = std::min(c / vectors, num_blocks - 1);
            scratch.columns[c] = keys_of(blocks[b], rows.kv_head) + c % vectors * LANES * UNIT;
            scratch.values[c / vectors] = values_of(blocks[b], rows.kv_head);
        }
        for_rows(rows, [&](auto count, int r) {
            if (r == rows.begin)
                score<decltype(count)::value, true>(r, num_columns, scratch);
            else
                score<decltype(count)::value, false>(r, num_columns, scratch);
        });
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

    // scores[r][c] = sum over d of queries[r][d] * keys[c][d], for ROWS rows and all keys of the span. FETCHES: the
    // blocks are scattered over memory, so the keys of the next columns and the values of these are asked for now.
    template <int ROWS, bool FETCHES>
    void score(int r, int num_columns, Scratch<Cached>& scratch) const {
        constexpr int COLUMNS = std::min(MAX_COLUMNS, NUM_SUMS / ROWS);
        const Factor* queries = &scratch.queries[(long)r * D];
        for (int c = 0; c < num_columns; c += COLUMNS) {
            Vector sums[ROWS][COLUMNS] = {};
            const Cached *columns[COLUMNS], *next[COLUMNS], *values[COLUMNS];
            for (int i = 0; i < COLUMNS; ++i) {
                columns[i] = scratch.columns[c + i];
                next[i] = scratch.columns[c + COLUMNS + i];
                values[i] = scratch.values[(c + i) * LANES / W];
            }
            for (int d = 0; d < D; d += UNIT) {
                typename P::Units keys[COLUMNS];
                for (int i = 0; i < COLUMNS; ++i) {
                    keys[i] = P::units(columns[i] + (long)d * W);
                    if (FETCHES) {
                        __builtin_prefetch(next[i] + (long)d * W, 0, 2);
                        __builtin_prefetch(values[i] + (long)d * W, 0, 2);
                    }
                }
                add_products<ROWS, COLUMNS>(keys, queries + d, D, sums);
            }
            for (int row = 0; row < ROWS; ++row)
                for (int i = 0; i < COLUMNS; ++i)
                    store(&scratch.scores[(long)(r + row) * width + (c + i) * LANES], sums[row][i]);
        }
    }

    // Scores to weights, relative to the largest score so far; what was summed before is corrected to it.
    void soften_row(int r, const Rows& rows, const int32_t* blocks, int num_blocks, int start,
                    Scratch<Cached>& scratch) const {
        const int token = scratch.tokens[r], size = num_blocks * W;
        const int from = window_start(token) - start, to = step.positions[token] + 1 - start;
        float* scores = &scratch.scores[(long)r * width];
        Vector best = broadcast(scratch.maxima[r]);
        int whole_to = 0;  // blocks that need nothing but the scale
        if (!IS_SCALED && step.softcap <= 0 && W == step.block_size && from <= 0) {
            whole_to = std::min(to / W, num_blocks);
            for (int i = 0; i < whole_to * W; i += LANES) {
                const Vector score = load(scores + i) * step.scale;
                store(scores + i, score);
                best = larger(score, best);
            }
        }
        for (int b = whole_to; b < num_blocks; ++b) {
            const float* scales = IS_SCALED ? key_scales(blocks[b], rows.kv_head) : nullptr;
            best = larger(finish_block(scores + b * W, scales, from - b * step.block_size, to - b * step.block_size), best);
        }
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
        if (maximum > scratch.maxima[r]) {
            const float correction = exponential(broadcast(scratch.maxima[r] - maximum))[0];
            scratch.maxima[r] = maximum;
            scratch.totals[r] *= correction;
            float* sums = &scratch.sums[(long)r * E];
            for (int e = 0; e < E; e += LANES) store(sums + e, load(sums + e) * correction);
        }
        scratch.totals[r] += sum(total);
    }

    // Scales and caps the scores of one block, and hides those outside [from, to), and the lanes that only fill up
    // the last vector. A row may see nothing of its first span: the weights it then gets are undone by the correction
    // to its first real score. Returns the largest scores.
    Vector finish_block(float* scores, const float* scales, int from, int to) const {
        to = std::min(to, step.block_size);
        Vector best = broadcast(MASKED);
        for (int i = 0; i < W; i += LANES) {
            Vector score = load(scores + i) * step.scale;
            if (scales) score *= load(scales + i);
            if (step.softcap > 0) score = hyperbolic_tangent(score * (1.0f / step.softcap)) * step.softcap;
            if (from > i || to < i + LANES) {
                const IntVector place = COUNTING + i;
                score = (place >= from) & (place < to) ? score : broadcast(MASKED);
            }
            store(scores + i, score);
            best = larger(score, best);
        }
        return best;
    }

    // sums[r][e] += sum over t of weights[r][t] * values[t][e], for ROWS rows, VECTORS * 16 components and all values
    // of the span.
    template <int ROWS, int VECTORS>
    void add_values(int r, int e, int num_values, Scratch<Cached>& scratch) const {
        if constexpr (ROWS * VECTORS > NUM_SUMS) {
            for (int row = 0; row < ROWS; row += ROWS / 2) add_values<ROWS / 2, VECTORS>(r + row, e, num_values, scratch);
        } else {
            Vector sums[ROWS][VECTORS] = {};
            for (int b = 0; num_values > 0; ++b, num_values -= step.block_size) {
                const Cached* values = scratch.values[b] + e * UNIT;
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
        add_products<ROWS, VECTORS>(units, weights + t, width, sums);
    }

    // sums[r][v] += units[v] * factors[r], a unit of them for each row.
    template <int ROWS, int VECTORS>
    static void add_products(const typename P::Units (&units)[VECTORS], const Factor* factors, long stride,
                             Vector (&sums)[ROWS][VECTORS]) {
#pragma GCC unroll 2
        for (int part = 0; part < P::PARTS; ++part) {
            decltype(P::part(units[0], 0)) parts[VECTORS];
            for (int v = 0; v < VECTORS; ++v) parts[v] = P::part(units[v], part);
            for (int row = 0; row < ROWS; ++row) {
                const typename P::Scalar factor = P::scalar(factors + row * stride, part);
                for (int v = 0; v < VECTORS; ++v) sums[row][v] = P::multiply_add(sums[row][v], parts[v], factor);
            }
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

// One layer by all threads of a team; compiled in attention.cpp alone, which takes long.
template <typename Element, typename Cached>
void run_attention(Team& team, const Plan& plan, const Attention<Element, Cached>& layer, Element* qkv, Element* out);

}  // namespace rlserve
