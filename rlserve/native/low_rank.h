// What adapters add to a product, each for its own rows: out[m] += (x[m] * first) * second, by all threads of a team.
//
//     rows of a  0 2 3 7  ─► tiles of up to 14 rows, of one adapter each ─► x * first, in tiles × panels of the rank
//     rows of b  1 5                                                    ─► hidden * second, in tiles × panels of outputs,
//                                                                         added to the rows where they are
//
// A fused product has one `second` for each of the layers that it was made of, so the zeros between them are not computed.
// A row gets the same bits whatever rows are beside it.
#pragma once

#include <vector>

#include "linear.h"

namespace rlserve {

constexpr int MOST_SECONDS = 3;  // mirrored by _MOST_SECONDS in low_rank.py

// One product of one adapter. Mirrored by LowRank in low_rank.py.
struct LowRank {
    const void* first;                  // [rank, inputs] in panels; null if the adapter has nothing for this product
    const void* seconds[MOST_SECONDS];  // [outputs, rank] of each part, in panels
    int32_t outputs[MOST_SECONDS], ranks[MOST_SECONDS];  // both add up; a rank may be 0

    int rank() const { return ranks[0] + ranks[1] + ranks[2]; }

    int output_panels() const {
        int count = 0;
        for (int part = 0; part < MOST_SECONDS; ++part) count += num_panels(outputs[part]);
        return count;
    }
};

// The rows of a step that have one adapter. Mirrored by AdapterRows in low_rank.py.
struct AdapterRows {
    const LowRank* products;  // by place
    const int32_t* rows;
    int32_t num_rows;
};

// Mirrored by StepAdapters in low_rank.py.
struct StepAdapters {
    const AdapterRows* groups;
    int32_t num_groups;
    int32_t most_rank;
};

template <typename T>
class LowRanks {
public:
    explicit LowRanks(const StepAdapters* adapters) {
        if (!adapters) return;
        stride_ = num_panels(adapters->most_rank) * PANEL;
        int num_rows = 0;
        for (int g = 0; g < adapters->num_groups; ++g) {
            const AdapterRows& group = adapters->groups[g];
            const int count = (group.num_rows + TILE_ROWS - 1) / TILE_ROWS, most = (group.num_rows + count - 1) / count;
            for (int row = 0; row < group.num_rows; row += most)
                tiles_.push_back({&group, row, std::min(most, group.num_rows - row), num_rows + row});
            num_rows += group.num_rows;
        }
        hidden_.resize((size_t)num_rows * stride_);
    }

    // Of the product at a place: x [rows, num_inputs] and out [rows, num_outputs].
    void add(Team& team, int place, const T* x, int num_inputs, T* out, int num_outputs) {
        int rank_panels = 0, output_panels = 0, rank = 0;
        for (const RowTile& tile : tiles_) {
            const LowRank& product = tile.group->products[place];
            if (!product.first) continue;
            rank = std::max(rank, product.rank());
            rank_panels = std::max(rank_panels, num_panels(product.rank()));
            output_panels = std::max(output_panels, product.output_panels());
        }
        if (!rank) return;
        const int num_tiles = (int)tiles_.size();
        team.share(num_tiles * rank_panels, 1, [&](int task) {
            const RowTile& tile = tiles_[task / rank_panels];
            reduce(tile, tile.group->products[place], task % rank_panels, x, num_inputs);
        });
        const int num_tasks = num_tiles * output_panels;
        const long task_work = (long)TILE_ROWS * PANEL * rank / MOST_SECONDS;
        const int grain = (int)std::max(1L, std::min(TASK_WORK / task_work, (long)num_tasks / (2 * team.size())));
        team.share(num_tasks, grain, [&](int task) {
            const RowTile& tile = tiles_[task / output_panels];
            expand(tile, tile.group->products[place], task % output_panels, out, num_outputs);
        });
    }

private:
    typedef typename Products<T>::Factor Factor;

    struct RowTile {
        const AdapterRows* group;
        int first, count;  // of the group's rows
        int hidden_row;
    };

    // hidden [count, rank] = x * first, for one panel of the rank.
    void reduce(const RowTile& tile, const LowRank& product, int panel, const T* x, int num_inputs) {
        const int rank = product.first ? product.rank() : 0;
        if (panel * PANEL >= rank) return;
        thread_local std::vector<Factor> gathered;
        if (gathered.size() < (size_t)TILE_ROWS * num_inputs) gathered.resize((size_t)TILE_ROWS * num_inputs);
        for (int r = 0; r < tile.count; ++r)
            convert(x + (long)tile.group->rows[tile.first + r] * num_inputs, num_inputs,
                    gathered.data() + (long)r * num_inputs);
        const T* weights = static_cast<const T*>(product.first) + (long)panel * PANEL * num_inputs;
        for (int n = 0; n < PANEL && panel * PANEL + n < rank; n += TILE_COLUMNS)
            multiply(gathered.data(), num_inputs, weights + n * Products<T>::UNIT, num_inputs,
                     hidden_.data() + (long)tile.hidden_row * stride_ + panel * PANEL + n,
                     std::is_same<Factor, float>::value, stride_, std::min(TILE_COLUMNS, rank - panel * PANEL - n),
                     tile.count);
    }

    // out += hidden * second, for one of the panels of all parts.
    void expand(const RowTile& tile, const LowRank& product, int panel, T* out, int num_outputs) const {
        if (!product.first) return;
        int part = 0, first_output = 0, first_rank = 0;
        for (; panel >= num_panels(product.outputs[part]); ++part) {
            panel -= num_panels(product.outputs[part]);
            first_output += product.outputs[part];
            first_rank += product.ranks[part];
        }
        const int rank = product.ranks[part], columns = std::min(PANEL, product.outputs[part] - panel * PANEL);
        if (rank == 0) return;
        float sums[TILE_ROWS * PANEL];
        const T* weights = static_cast<const T*>(product.seconds[part]) + (long)panel * PANEL * rank;
        for (int n = 0; n < columns; n += TILE_COLUMNS)
            multiply(hidden_.data() + (long)tile.hidden_row * stride_ + first_rank, stride_,
                     weights + n * Products<T>::UNIT, rank, sums + n, true, PANEL, std::min(TILE_COLUMNS, columns - n),
                     tile.count);
        for (int r = 0; r < tile.count; ++r) {
            T* row = out + (long)tile.group->rows[tile.first + r] * num_outputs + first_output + panel * PANEL;
            int n = 0;
            for (; n + LANES <= columns; n += LANES) store(row + n, load(row + n) + load(sums + r * PANEL + n));
            for (; n < columns; ++n) assign(row[n], to_float(row[n]) + sums[r * PANEL + n]);
        }
    }

    static void multiply(const Factor* x, long x_stride, const T* weights, int num_inputs, void* out, bool is_float,
                         long out_stride, int num_columns, int num_rows) {
        const Tile<T, T> tile{x,       x_stride, weights, nullptr,  num_inputs, nullptr,
                              nullptr, out,      is_float, out_stride, num_columns};
        tile.multiply(num_rows);
    }

    std::vector<RowTile> tiles_;
    std::vector<Factor> hidden_;
    int stride_ = 0;
};

// The same, compiled in linear.cpp alone.
template <typename T>
void add_low_ranks(Team& team, LowRanks<T>& adapters, int place, const T* x, int num_inputs, T* out, int num_outputs);

}  // namespace rlserve
