// Which rows of a step's attention are computed together, the same for all layers.
//
// A tile has all query heads of a key-value head, for some tokens of one sequence, or for one token of each of several
// sequences that begin alike, which read what they share once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace rlserve {

// What all layers of a kind share in one step. Mirrored by StepArguments in attention.py.
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

// The cache of one layer. Mirrored by LayerCache in attention.py.
struct LayerCache {
    void *keys, *values;
    float* scales;  // [blocks, K, 2, W] of keys and of values, for a cache of int8; else null
};

constexpr int SPAN = 128;            // context tokens between two corrections of the running softmax
constexpr int TILE_QUERY_ROWS = 16;  // rows that read the cache together

inline int span_of(int block_size) { return std::max(1, SPAN / block_size) * block_size; }

// Rows that go together: the tokens [first, end) of one sequence; or, where `num_together` is not 0, the only token of
// each of that many sequences, `Plan::order[first]` and on, whose context begins alike for `num_shared` tokens, which
// are whole spans.
struct WorkItem {
    int sequence, first, end;
    int num_together, num_shared;
};

constexpr int RUN_TOKENS = 16;  // whose keys and values are written to the cache together

// The work of a step, the same for all layers.
struct Plan {
    std::vector<int> run_ends;  // of neighbours in one sequence; whole runs begin at multiples of their slots
    std::vector<WorkItem> items;
    std::vector<int> order;  // sequences with a single token, those that begin with the same blocks side by side

    Plan() = default;
    explicit Plan(const Step& step) : Plan(step, std::vector<bool>(step.num_tokens, true)) {}

    // Where only some of the tokens attend.
    Plan(const Step& step, const std::vector<bool>& attends) {
        for (int s = 0; s < step.num_sequences; ++s) {
            const int first = step.query_starts[s], end = step.query_starts[s + 1];
            for (int t = first, run = first; t < end; ++t)
                if (t + 1 == end || t + 1 - run == RUN_TOKENS || step.cache_slots[t] % RUN_TOKENS == RUN_TOKENS - 1)
                    run_ends.push_back(run = t + 1);
            if (end - first == 1) {
                if (attends[first]) order.push_back(s);
            } else {
                for (int t = first; t < end;) {
                    const int tile = t, most = std::min(end, tile + tile_tokens(step));
                    while (t < most && attends[t]) ++t;
                    if (t > tile)
                        items.push_back({s, tile, t, 0, 0});
                    else
                        ++t;
                }
            }
        }
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return *step.table(a) < *step.table(b); });
        for (int i = 0, end; i < (int)order.size(); i = end) {
            int num_shared = 0;
            for (end = i + 1; end < (int)order.size() && end - i < tile_tokens(step); ++end) {
                const int shared = shared_spans(step, order[end - 1], order[end]);
                if (shared == 0 || shared < num_shared) break;
                if (end == i + 1) num_shared = shared;
            }
            const int first = step.query_starts[order[i]];
            items.push_back(end == i + 1 ? WorkItem{order[i], first, first + 1, 0, 0}
                                         : WorkItem{order[i], i, end, end - i, num_shared});
        }
    }

    static int tile_tokens(const Step& step) {
        return std::max(1, TILE_QUERY_ROWS * step.num_kv_heads / step.num_heads);
    }

    // Tokens of the whole spans that two sequences both begin with.
    static int shared_spans(const Step& step, int one, int other) {
        const int context =
            std::min(step.positions[step.query_starts[one]], step.positions[step.query_starts[other]]) + 1;
        const int32_t* table = step.table(one);
        const int num_blocks = context / step.block_size, span = span_of(step.block_size);
        const int num_alike = (int)(std::mismatch(table, table + num_blocks, step.table(other)).first - table);
        return num_alike * step.block_size / span * span;
    }
};

}  // namespace rlserve
