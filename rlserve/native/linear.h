// Products with a matrix of weights: out[m][n] = bias[n] + sum over k of x[m][k] * weight[n][k].
//
// The weights are packed into panels of 32 outputs, [panel][k / UNIT][32][UNIT]: one panel is read from end to end
// while up to 14 rows of x stay in registers, as sums. A sum runs over k in order, whatever rows there are beside it.
#pragma once

#include <array>
#include <utility>

#include "team.h"
#include "vector.h"

namespace rlserve {

constexpr int PANEL = 2 * LANES;
#ifdef __AVX512F__
constexpr int TILE_ROWS = 14;  // 28 of 32 registers are sums
#else
constexpr int TILE_ROWS = 3;
#endif
constexpr int ROW_BLOCK = 16 * TILE_ROWS;     // rows that go over all panels together: they stay in the cache
constexpr long TASK_WORK = 1 << 19;           // multiplications of a task, about 5 microseconds

inline int num_panels(int num_outputs) { return (num_outputs + PANEL - 1) / PANEL; }

// Packs one panel; outputs past the last are zero.
template <typename T>
void pack_panel(const T* weight, int num_outputs, int num_inputs, int panel, T* packed) {
    constexpr int UNIT = Products<T>::UNIT;
    T* to = packed + (long)panel * PANEL * num_inputs;
    for (int n = 0; n < PANEL; ++n) {
        const int output = panel * PANEL + n;
        const T* row = weight + (long)output * num_inputs;
        for (int k = 0; k < num_inputs; k += UNIT)
            for (int u = 0; u < UNIT; ++u)
                to[(long)k * PANEL + n * UNIT + u] = output < num_outputs ? row[k + u] : T{};
    }
}

template <typename T, typename Out>
struct Tile {
    const T* x;
    long x_stride;
    const T* panel;
    const T* next_panel;  // to be fetched meanwhile, or null
    int num_inputs;
    const float* bias;  // 32 of them, or null
    Out* out;
    long out_stride;
    int num_columns;  // of the panel that there are

    template <int ROWS>
    void multiply() const {
        if (next_panel)
            multiply_and_fetch<ROWS, true>();
        else
            multiply_and_fetch<ROWS, false>();
    }

    template <int ROWS, bool FETCH>
    void multiply_and_fetch() const {
        typedef Products<T> P;
        Vector sums[ROWS][2];
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < 2; ++v) sums[r][v] = bias ? load(bias + v * LANES) : Vector{};
        for (int k = 0; k < num_inputs; k += P::UNIT) {
            const T* from = panel + (long)k * PANEL;
            const typename P::Units first = P::units(from), second = P::units(from + LANES * P::UNIT);
            if (FETCH) {
                __builtin_prefetch(next_panel + (long)k * PANEL, 0, 2);
                __builtin_prefetch(next_panel + (long)k * PANEL + LANES * P::UNIT, 0, 2);
            }
            for (int r = 0; r < ROWS; ++r) {
                const typename P::Scalar scalar = P::scalar(x + r * x_stride + k);
                sums[r][0] = P::multiply_add(sums[r][0], first, scalar);
                sums[r][1] = P::multiply_add(sums[r][1], second, scalar);
            }
        }
        for (int r = 0; r < ROWS; ++r) {
            Out* row = out + r * out_stride;
            if (num_columns == PANEL) {
                store(row, sums[r][0]);
                store(row + LANES, sums[r][1]);
            } else {
                float columns[PANEL];
                store(columns, sums[r][0]);
                store(columns + LANES, sums[r][1]);
                for (int n = 0; n < num_columns; ++n) assign(row[n], columns[n]);
            }
        }
    }

    void multiply(int rows) const { multiply_of(rows, std::make_integer_sequence<int, TILE_ROWS>{}); }

    template <int... INDEX>
    void multiply_of(int rows, std::integer_sequence<int, INDEX...>) const {
        static constexpr std::array<void (Tile::*)() const, TILE_ROWS> by_rows = {&Tile::multiply<INDEX + 1>...};
        (this->*by_rows[rows - 1])();
    }
};

template <typename T, typename Out>
struct Linear {
    const T* packed;
    const float* bias;  // padded to whole panels; or null
    int num_inputs, num_outputs;

    // x [num_rows, num_inputs] and out [num_rows, num_outputs]; by all threads of the team.
    void run(Team& team, const T* x, int num_rows, Out* out) const {
        if (num_rows == 0) return;
        const int panels = num_panels(num_outputs), blocks = (num_rows + ROW_BLOCK - 1) / ROW_BLOCK;
        const long task_work = (long)std::min(num_rows, ROW_BLOCK) * num_inputs * PANEL;
        const int grain = (int)std::max(1L, std::min(TASK_WORK / task_work, (long)panels * blocks / (4 * team.size())));
        team.share(panels * blocks, grain, [&](int task) {
            const int first = task / panels * ROW_BLOCK;
            run_panel(task % panels, x, first, std::min(num_rows, first + ROW_BLOCK), out);
        });
    }

    void run_panel(int panel, const T* x, int first, int end, Out* out) const {
        const int num_tiles = (end - first + TILE_ROWS - 1) / TILE_ROWS, rows = (end - first + num_tiles - 1) / num_tiles;
        const T* weights = packed + (long)panel * PANEL * num_inputs;
        for (int row = first; row < end; row += rows) {
            // The first tile is busy reading its own panel; fetching the next one is left to the last.
            const bool fetch = row > first && row + rows >= end && panel + 1 < num_panels(num_outputs);
            const Tile<T, Out> tile{x + (long)row * num_inputs,
                                    num_inputs,
                                    weights,
                                    fetch ? weights + (long)PANEL * num_inputs : nullptr,
                                    num_inputs,
                                    bias ? bias + panel * PANEL : nullptr,
                                    out + (long)row * num_outputs + panel * PANEL,
                                    num_outputs,
                                    std::min(PANEL, num_outputs - panel * PANEL)};
            tile.multiply(std::min(rows, end - row));
        }
    }
};

}  // namespace rlserve
