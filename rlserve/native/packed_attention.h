// Causal attention of a trainer over packed samples, forward and backward, from what the product for queries, keys and
// values gives: head norms, if there are any, rotation, attention. Nothing between is kept.
//
// Samples that begin alike share the rows of what they begin with. A segment is a run of rows at rising positions; its
// parent is the segment that holds the row before its first, and the path of a row goes up through the parents:
//
//     segment 0   a b c d e f      rows 0 to 5, positions 0 to 5
//     segment 1       └ x y        rows 6 and 7, positions 3 and 4; its path is a b c x y
//
// Segments that share anything are a tree. A tree and a key-value head make a task, whose sums run in an order of its
// own: the bits depend neither on the trees beside it nor on the number of threads.
//
// Legend: T rows, N query heads, K key-value heads, G = N / K, D head size, E = D rounded up to whole vectors.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "team.h"
#include "vector.h"

namespace rlserve {

// Mirrored by PackedStep in packed.py.
struct PackedStep {
    int32_t num_trees;
    int32_t longest;  // rows of the longest path
    int32_t num_heads, num_kv_heads, head_dim;
    int32_t window;  // rows back that attention reaches, the row itself included; 0 for all
    float eps, scale;
    float softcap;      // scores become softcap * tanh(score / softcap); 0 leaves them
    float norm_offset;  // added to the weights of the head norms
    const int32_t* positions;  // [T]
    const int32_t* segments;   // [segments + 1] the first row of each
    const int32_t* parents;    // [segments] -1 where there is none
    const int32_t* trees;      // [trees + 1] the first segment of each
    const uint8_t* wanted;     // [T] the rows whose outputs are asked for; null for all
    const float* rotation;     // [positions, 2, D / 2]
    const float *query_norm, *key_norm;  // [D] or null
};

constexpr int PACKED_ROWS = 16;                       // of queries, that go over a path together
constexpr int PACKED_SUMS = LANES == 16 ? 16 : 8;     // vectors of sums that are in registers together
constexpr int PACKED_COLUMNS = 4;                     // vectors of keys that are scored together, at most

// One head of one row: its norm and its rotation, there and back.
struct HeadTransform {
    int size;
    const float* weight;  // of the norm, or null
    float eps, offset;

    template <typename Element>
    float inverse_root(const Element* head) const {
        if (!weight) return 1.0f;
        Vector squares{};
        int d = 0;
        for (; d + LANES <= size; d += LANES) squares += load(head + d) * load(head + d);
        float total = sum(squares);
        for (; d < size; ++d) total += to_float(head[d]) * to_float(head[d]);
        return 1.0f / std::sqrt(total / size + eps);
    }

    // out [size] = rotation of the normed head, times `factor`.
    template <typename Element>
    void forward(const Element* head, const float* rotation, float factor, float* out) const {
        const int half = size / 2;
        const float scale = inverse_root(head) * factor;
        const float *cosines = rotation, *sines = rotation + half;
        int d = 0;
        for (; d + LANES <= half; d += LANES) {
            const Vector first = load(head + d) * weights(d) * scale, second = load(head + d + half) * weights(d + half) * scale;
            store(out + d, first * load(cosines + d) - second * load(sines + d));
            store(out + d + half, second * load(cosines + d) + first * load(sines + d));
        }
        for (; d < half; ++d) {
            const float first = to_float(head[d]) * weight_at(d) * scale;
            const float second = to_float(head[d + half]) * weight_at(d + half) * scale;
            out[d] = first * cosines[d] - second * sines[d];
            out[d + half] = second * cosines[d] + first * sines[d];
        }
    }

    // From the gradient of what `forward` gave, which is overwritten, to that of the head; adds that of the weights.
    template <typename Element>
    void backward(const Element* head, const float* rotation, float factor, float* gradient, Element* out,
                  float* of_weight) const {
        const int half = size / 2;
        const float *cosines = rotation, *sines = rotation + half;
        int d = 0;
        for (; d + LANES <= half; d += LANES) {
            const Vector first = load(gradient + d) * factor, second = load(gradient + d + half) * factor;
            store(gradient + d, first * load(cosines + d) + second * load(sines + d));
            store(gradient + d + half, second * load(cosines + d) - first * load(sines + d));
        }
        for (; d < half; ++d) {
            const float first = gradient[d] * factor, second = gradient[d + half] * factor;
            gradient[d] = first * cosines[d] + second * sines[d];
            gradient[d + half] = second * cosines[d] - first * sines[d];
        }
        if (!weight) {
            for (d = 0; d + LANES <= size; d += LANES) store(out + d, load(gradient + d));
            for (; d < size; ++d) assign(out[d], gradient[d]);
            return;
        }
        const float root = inverse_root(head);
        Vector products{};
        for (d = 0; d + LANES <= size; d += LANES) {
            const Vector x = load(head + d), g = load(gradient + d);
            store(of_weight + d, load(of_weight + d) + g * x * root);
            products += g * weights(d) * x;
        }
        float product = sum(products);
        for (; d < size; ++d) {
            of_weight[d] += gradient[d] * to_float(head[d]) * root;
            product += gradient[d] * weight_at(d) * to_float(head[d]);
        }
        const float along = product * root * root * root / size;
        for (d = 0; d + LANES <= size; d += LANES)
            store(out + d, load(gradient + d) * weights(d) * root - load(head + d) * along);
        for (; d < size; ++d) assign(out[d], gradient[d] * weight_at(d) * root - to_float(head[d]) * along);
    }

private:
    Vector weights(int d) const { return weight ? load(weight + d) + offset : broadcast(1.0f); }
    float weight_at(int d) const { return weight ? weight[d] + offset : 1.0f; }
};

// Rows of a tree that follow each other, at positions that do.
struct PathPart {
    int row, position, count;
};

// out[r][position] = sum over d of a[r][d] * b[d][row], for ROWS rows of a, which lie E apart.
template <int ROWS, int COLUMNS>
inline void score_block(const float* a, int size, int E, const float* b, long b_stride, float* out, long width) {
    Vector sums[ROWS][COLUMNS] = {};
    for (int d = 0; d < size; ++d) {
        Vector columns[COLUMNS];
        for (int i = 0; i < COLUMNS; ++i) columns[i] = load(b + d * b_stride + i * LANES);
        for (int r = 0; r < ROWS; ++r)
            for (int i = 0; i < COLUMNS; ++i) sums[r][i] += columns[i] * a[(long)r * E + d];
    }
    for (int r = 0; r < ROWS; ++r)
        for (int i = 0; i < COLUMNS; ++i) store(out + r * width + i * LANES, sums[r][i]);
}

// out[r][e] = sum over the path of weights[r][position] * b[row][e], for ROWS rows and VECTORS vectors.
template <int ROWS, int VECTORS>
inline void gather_block(const float* weights, long width, const std::vector<PathPart>& path, const float* b, int E,
                         float* out) {
    Vector sums[ROWS][VECTORS] = {};
    for (const PathPart& part : path)
        for (int t = 0; t < part.count; ++t) {
            const float* from = b + (long)(part.row + t) * E;
            Vector values[VECTORS];
            for (int v = 0; v < VECTORS; ++v) values[v] = load(from + v * LANES);
            for (int r = 0; r < ROWS; ++r) {
                const float weight = weights[r * width + part.position + t];
                for (int v = 0; v < VECTORS; ++v) sums[r][v] += values[v] * weight;
            }
        }
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) store(out + (long)r * E + v * LANES, sums[r][v]);
}

// b[row][e] += sum over r of weights[r][position] * a[r][e], for COUNT rows of b and VECTORS vectors.
template <int COUNT, int VECTORS>
inline void scatter_block(const float* weights, long width, int num_rows, const float* a, int E, float* b) {
    Vector sums[COUNT][VECTORS];
    for (int t = 0; t < COUNT; ++t)
        for (int v = 0; v < VECTORS; ++v) sums[t][v] = load(b + (long)t * E + v * LANES);
    for (int r = 0; r < num_rows; ++r) {
        Vector values[VECTORS];
        for (int v = 0; v < VECTORS; ++v) values[v] = load(a + (long)r * E + v * LANES);
        for (int t = 0; t < COUNT; ++t)
            for (int v = 0; v < VECTORS; ++v) sums[t][v] += values[v] * weights[r * width + t];
    }
    for (int t = 0; t < COUNT; ++t)
        for (int v = 0; v < VECTORS; ++v) store(b + (long)t * E + v * LANES, sums[t][v]);
}

template <int NUMBER>
struct Number {
    static constexpr int value = NUMBER;
};

// Calls body(Number<n>, first) with groups of eight, four, two and one of `count`.
template <typename Body>
inline void in_groups(int count, Body body) {
    int i = 0;
    for (; i + 8 <= count; i += 8) body(Number<8>{}, i);
    for (; i + 4 <= count; i += 4) body(Number<4>{}, i);
    for (; i + 2 <= count; i += 2) body(Number<2>{}, i);
    for (; i < count; ++i) body(Number<1>{}, i);
}

// Calls body(Number<n>) with n = count, of one to four.
template <typename Body>
inline void as_number(int count, Body body) {
    switch (count) {
        case 1: return body(Number<1>{});
        case 2: return body(Number<2>{});
        case 3: return body(Number<3>{});
        default: return body(Number<4>{});
    }
}

// Work space of one thread, which keeps it from call to call.
struct PackedScratch {
    std::vector<float> keys, keys_by_component, values, values_by_component, of_keys, of_values;
    std::vector<float> queries, gradients, scores, score_gradients, sums, totals;
    std::vector<PathPart> path;
    std::vector<int> tokens;

    static float* room(std::vector<float>& memory, long size) {
        if ((long)memory.size() < size) memory.resize(size);
        return memory.data();
    }
};

template <typename Element>
struct PackedAttention {
    const PackedStep& step;
    const int D = step.head_dim, N = step.num_heads, K = step.num_kv_heads, G = N / K;
    const int E = (D + LANES - 1) / LANES * LANES, row_size = (N + 2 * K) * D;
    const long width = (step.longest + PACKED_COLUMNS * LANES + LANES - 1) / LANES * LANES;
    const int tile_tokens = std::max(1, PACKED_ROWS / G), most_rows = tile_tokens * G;
    const HeadTransform of_query{D, step.query_norm, step.eps, step.norm_offset};
    const HeadTransform of_key{D, step.key_norm, step.eps, step.norm_offset};

    // qkv [T, N + 2 K, D] to out [T, N, D], and to log_sums [T, N] of the exponentials of each row's scores.
    void forward(Team& team, const Element* qkv, Element* out, float* log_sums) const {
        team.share(step.num_trees * K, 1, [&](int task) {
            Task(*this, task / K, task % K).forward(qkv, out, log_sums);
        });
    }

    // The gradient of qkv from that of out; of_norms [trees, K, 2, D] gets a task's part of the gradient of the norms.
    void backward(Team& team, const Element* qkv, const Element* out, const float* log_sums, const Element* gradient,
                  Element* of_qkv, float* of_norms) const {
        team.share(step.num_trees * K, 1, [&](int task) {
            Task(*this, task / K, task % K)
                .backward(qkv, out, log_sums, gradient, of_qkv, of_norms ? of_norms + (long)task * 2 * D : nullptr);
        });
    }

private:
    // A tree and a key-value head.
    struct Task {
        const PackedAttention& all;
        const PackedStep& step;
        const int tree, head, D, E, G, first_row, num_rows;
        const long width, stride;
        PackedScratch& scratch;

        Task(const PackedAttention& all, int tree, int head)
            : all(all), step(all.step), tree(tree), head(head), D(all.D), E(all.E), G(all.G),
              first_row(step.segments[step.trees[tree]]), num_rows(step.segments[step.trees[tree + 1]] - first_row),
              width(all.width), stride((num_rows + LANES - 1) / LANES * LANES + (PACKED_COLUMNS + 1) * LANES),
              scratch(own_scratch()) {}

        static PackedScratch& own_scratch() {
            thread_local PackedScratch scratch;
            return scratch;
        }

        const float* rotation_of(int row) const { return step.rotation + (long)step.positions[row] * D; }
        bool is_wanted(int row) const { return !step.wanted || step.wanted[row]; }
        int query_at(int g) const { return (head * G + g) * D; }
        int key_at() const { return (all.N + head) * D; }
        int value_at() const { return (all.N + all.K + head) * D; }

        void forward(const Element* qkv, Element* out, float* log_sums) {
            read_keys(qkv, false);
            float* sums = PackedScratch::room(scratch.sums, (long)all.most_rows * E);
            for_tiles([&](int num_tile_rows) {
                read_queries(qkv);
                score(num_tile_rows, scratch.queries.data(), scratch.keys_by_component.data(), scratch.scores);
                float* totals = PackedScratch::room(scratch.totals, num_tile_rows);
                for (int r = 0; r < num_tile_rows; ++r) totals[r] = soften(r, log_sums);
                gather(num_tile_rows, scratch.scores.data(), scratch.values.data(), sums);
                for (int r = 0; r < num_tile_rows; ++r) {
                    const float factor = 1.0f / totals[r];
                    Element* to = out + (long)token_of(r) * all.N * D + query_at(r % G);
                    write(sums + (long)r * E, factor, to);
                }
            });
        }

        void backward(const Element* qkv, const Element* out, const float* log_sums, const Element* gradient,
                      Element* of_qkv, float* of_norms) {
            if (of_norms) std::fill_n(of_norms, 2 * D, 0.0f);
            read_keys(qkv, true);
            float* of_keys = PackedScratch::room(scratch.of_keys, (long)num_rows * E);
            float* of_values = PackedScratch::room(scratch.of_values, (long)num_rows * E);
            std::fill_n(of_keys, (long)num_rows * E, 0.0f);
            std::fill_n(of_values, (long)num_rows * E, 0.0f);
            float* sums = PackedScratch::room(scratch.sums, (long)all.most_rows * E);
            for_tiles([&](int num_tile_rows) {
                read_queries(qkv);
                read_gradients(gradient, num_tile_rows);
                score(num_tile_rows, scratch.queries.data(), scratch.keys_by_component.data(), scratch.scores);
                score(num_tile_rows, scratch.gradients.data(), scratch.values_by_component.data(),
                      scratch.score_gradients);
                for (int r = 0; r < num_tile_rows; ++r) soften_back(r, out, log_sums);
                scatter(num_tile_rows, scratch.scores.data(), scratch.gradients.data(), of_values);
                scatter(num_tile_rows, scratch.score_gradients.data(), scratch.queries.data(), of_keys);
                gather(num_tile_rows, scratch.score_gradients.data(), scratch.keys.data(), sums);
                for (int r = 0; r < num_tile_rows; ++r) {
                    const int row = token_of(r);
                    const long at = (long)row * all.row_size + query_at(r % G);
                    all.of_query.backward(qkv + at, rotation_of(row), step.scale, sums + (long)r * E, of_qkv + at,
                                          of_norms);
                }
            });
            for (int i = 0; i < num_rows; ++i) {
                const int row = first_row + i;
                Element* of_row = of_qkv + (long)row * all.row_size;
                all.of_key.backward(qkv + (long)row * all.row_size + key_at(), rotation_of(row), 1.0f,
                                    of_keys + (long)i * E, of_row + key_at(), of_norms ? of_norms + D : nullptr);
                write(of_values + (long)i * E, 1.0f, of_row + value_at());
                if (!is_wanted(row))
                    for (int d = 0; d < G * D; ++d) assign(of_row[query_at(0) + d], 0.0f);
            }
        }

        // Keys and values of the tree: by rows, and by components where rows of the other side are multiplied by them.
        void read_keys(const Element* qkv, bool is_backward) {
            const long size = (long)num_rows * E, transposed = (long)D * stride;
            float* keys = PackedScratch::room(scratch.keys, size);
            float* values = PackedScratch::room(scratch.values, size);
            float* keys_by_component = PackedScratch::room(scratch.keys_by_component, transposed);
            if (is_backward) PackedScratch::room(scratch.values_by_component, transposed);
            for (int i = 0; i < num_rows; ++i) {
                const int row = first_row + i;
                const Element* from = qkv + (long)row * all.row_size;
                float *key = keys + (long)i * E, *value = values + (long)i * E;
                all.of_key.forward(from + key_at(), rotation_of(row), 1.0f, key);
                std::fill(key + D, key + E, 0.0f);
                read(from + value_at(), value);
            }
            transpose(keys, keys_by_component);
            if (is_backward) transpose(values, scratch.values_by_component.data());
        }

        // [rows, E] to [D, stride]; what is behind the last row is 0.
        void transpose(const float* rows, float* components) const {
            for (int d = 0; d < D; ++d) {
                float* to = components + d * stride;
                for (int i = 0; i < num_rows; ++i) to[i] = rows[(long)i * E + d];
                std::fill(to + num_rows, to + stride, 0.0f);
            }
        }

        // Calls body(rows) for tiles of tokens of a segment, which are in `tokens` then, with their path.
        template <typename Body>
        void for_tiles(Body body) {
            for (int segment = step.trees[tree]; segment < step.trees[tree + 1]; ++segment) {
                const int end = step.segments[segment + 1];
                for (int row = step.segments[segment]; row < end;) {
                    scratch.tokens.clear();
                    for (; row < end && (int)scratch.tokens.size() < all.tile_tokens; ++row)
                        if (is_wanted(row)) scratch.tokens.push_back(row);
                    if (scratch.tokens.empty()) break;
                    find_path(segment);
                    body((int)scratch.tokens.size() * G);
                }
            }
        }

        int token_of(int r) const { return scratch.tokens[r / G]; }
        int window_start(int position) const { return step.window ? std::max(0, position + 1 - step.window) : 0; }
        int begin() const { return window_start(step.positions[scratch.tokens.front()]); }
        int end() const { return step.positions[scratch.tokens.back()] + 1; }

        // What any token of the tile sees, in the order of the positions.
        void find_path(int segment) {
            std::vector<PathPart>& path = scratch.path;
            path.clear();
            for (int until = end(); until > begin(); segment = step.parents[segment]) {
                const int row = step.segments[segment], position = step.positions[row];
                const int from = std::max(position, begin());
                if (from < until) path.push_back({row + from - position - first_row, from, until - from});
                until = std::min(until, position);
            }
            std::reverse(path.begin(), path.end());
        }

        void read_queries(const Element* qkv) {
            float* queries = PackedScratch::room(scratch.queries, (long)all.most_rows * E);
            for (int i = 0; i < (int)scratch.tokens.size(); ++i)
                for (int g = 0; g < G; ++g) {
                    const int row = scratch.tokens[i];
                    float* query = queries + (long)(i * G + g) * E;
                    all.of_query.forward(qkv + (long)row * all.row_size + query_at(g), rotation_of(row), step.scale,
                                         query);
                    std::fill(query + D, query + E, 0.0f);
                }
        }

        void read_gradients(const Element* gradient, int num_tile_rows) {
            float* gradients = PackedScratch::room(scratch.gradients, (long)all.most_rows * E);
            for (int r = 0; r < num_tile_rows; ++r) {
                const Element* from = gradient + (long)token_of(r) * all.N * D + query_at(r % G);
                read(from, gradients + (long)r * E);
            }
        }

        // What is written behind a part of the path is overwritten by the next part.
        void score(int num_tile_rows, const float* a, const float* components, std::vector<float>& scores) {
            float* out = PackedScratch::room(scores, all.most_rows * width);
            for (const PathPart& part : scratch.path)
                in_groups(num_tile_rows, [&](auto rows, int r) {
                    constexpr int ROWS = decltype(rows)::value;
                    constexpr int MOST = std::min(PACKED_COLUMNS, PACKED_SUMS / ROWS);
                    for (int t = 0; t < part.count; t += MOST * LANES) {
                        const int vectors = std::min(MOST, (part.count - t + LANES - 1) / LANES);
                        as_number(vectors, [&](auto columns) {
                            if constexpr (decltype(columns)::value <= MOST)
                                score_block<ROWS, decltype(columns)::value>(
                                    a + (long)r * E, D, E, components + part.row + t, stride,
                                    out + r * width + part.position + t, width);
                        });
                    }
                });
        }

        void gather(int num_tile_rows, const float* weights, const float* b, float* out) const {
            for (int e = 0; e < E; e += 4 * LANES)
                as_number(std::min(4, (E - e) / LANES), [&](auto vectors) {
                    constexpr int VECTORS = decltype(vectors)::value;
                    in_groups(num_tile_rows, [&](auto rows, int r) {
                        constexpr int ROWS = decltype(rows)::value, MOST = std::max(1, PACKED_SUMS / VECTORS);
                        constexpr int TOGETHER = ROWS <= MOST ? ROWS : (MOST >= 4 ? 4 : (MOST >= 2 ? 2 : 1));
                        for (int i = r; i < r + ROWS; i += TOGETHER)
                            gather_block<TOGETHER, VECTORS>(weights + i * width, width, scratch.path, b + e, E,
                                                            out + (long)i * E + e);
                    });
                });
        }

        void scatter(int num_tile_rows, const float* weights, const float* a, float* b) const {
            for (const PathPart& part : scratch.path)
                for (int e = 0; e < E; e += 4 * LANES)
                    as_number(std::min(4, (E - e) / LANES), [&](auto vectors) {
                        constexpr int VECTORS = decltype(vectors)::value, TOGETHER = std::max(1, PACKED_SUMS / VECTORS / 2);
                        int t = 0;
                        for (; t + TOGETHER <= part.count; t += TOGETHER)
                            scatter_block<TOGETHER, VECTORS>(weights + part.position + t, width, num_tile_rows, a + e, E,
                                                             b + (long)(part.row + t) * E + e);
                        for (; t < part.count; ++t)
                            scatter_block<1, VECTORS>(weights + part.position + t, width, num_tile_rows, a + e, E,
                                                      b + (long)(part.row + t) * E + e);
                    });
        }

        // Scores of a row to weights that are yet to be divided by their sum, which is returned.
        float soften(int r, float* log_sums) {
            const int position = step.positions[token_of(r)], from = window_start(position), to = position + 1;
            float* scores = &scratch.scores[r * width];
            Vector best = broadcast(-1e30f);
            for (int c = begin(); c < end(); c += LANES) {
                const Vector seen = is_seen(c, from, to) ? capped(load(scores + c)) : broadcast(-1e30f);
                store(scores + c, seen);
                best = larger(best, seen);
            }
            const float maximum = largest(best);
            Vector total{};
            for (int c = begin(); c < end(); c += LANES) {
                const Vector weight = exponential(load(scores + c) - maximum);
                store(scores + c, weight);
                total += weight;
            }
            const float summed = sum(total);
            log_sums[(long)token_of(r) * all.N + head * G + r % G] = maximum + std::log(summed);
            return summed;
        }

        // Scores of a row and the gradients of its weights to its weights and the gradients of its scores.
        void soften_back(int r, const Element* out, const float* log_sums) {
            const int row = token_of(r), position = step.positions[row];
            const int from = window_start(position), to = position + 1;
            float *scores = &scratch.scores[r * width], *gradients = &scratch.score_gradients[r * width];
            const float* of_out = &scratch.gradients[(long)r * E];
            const Element* outputs = out + (long)row * all.N * D + query_at(r % G);
            float mean = 0.0f;
            for (int d = 0; d < D; ++d) mean += of_out[d] * to_float(outputs[d]);
            const float log_sum = log_sums[(long)row * all.N + head * G + r % G];
            for (int c = begin(); c < end(); c += LANES) {
                const Vector raw = load(scores + c);
                const Vector score = capped(raw);
                const IntVector seen = is_seen(c, from, to);
                const Vector weight = seen ? exponential(score - log_sum) : broadcast(0.0f);
                Vector gradient = weight * (load(gradients + c) - mean);
                if (step.softcap > 0) {
                    const Vector part = score * (1.0f / step.softcap);
                    gradient *= 1.0f - part * part;
                }
                store(scores + c, weight);
                store(gradients + c, seen ? gradient : broadcast(0.0f));
            }
        }

        static IntVector is_seen(int c, int from, int to) {
            const IntVector place = COUNTING + c;
            return (place >= from) & (place < to);
        }

        Vector capped(Vector score) const {
            return step.softcap > 0 ? hyperbolic_tangent(score * (1.0f / step.softcap)) * step.softcap : score;
        }

        // One head of a row [D] to float32 [E].
        void read(const Element* from, float* to) const {
            convert(from, D, to);
            std::fill(to + D, to + E, 0.0f);
        }

        void write(const float* from, float factor, Element* to) const { scale_to(from, factor, D, to); }
    };
};

}  // namespace rlserve
