// Products with a matrix of weights: out[m][n] = bias[n] + sum over k of x[m][k] * weight[n][k].
//
// The weights are kept in panels of 32 outputs, [panel][k / UNIT][32][UNIT]: one panel is read from end to end
// while up to 14 rows of x stay in registers, as sums. A sum runs over k in order, whatever rows there are beside it.
// Weights may be kept as int8 in the same places, with a scale for each output: a panel is then spread out to numbers
// of x's type, which hold such integers exactly, and the sums are scaled at the end.
#pragma once

#include <array>
#include <cmath>
#include <utility>
#include <vector>

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

// Swaps the bit BIT of the row with that of the column, for two rows that differ in that bit.
template <int BIT>
inline void exchange(IntVector& low, IntVector& high) {
    const IntVector from_low = COUNTING & BIT ? COUNTING + (LANES - BIT) : COUNTING;
    const IntVector from_high = COUNTING & BIT ? COUNTING + LANES : COUNTING + BIT;
    const IntVector both = shuffle(low, high, from_low);
    high = shuffle(low, high, from_high);
    low = both;
}

template <int BIT>
inline void exchange_all(IntVector (&rows)[LANES]) {
    for (int r = 0; r < LANES; ++r)
        if (!(r & BIT)) exchange<BIT>(rows[r], rows[r + BIT]);
}

// Rows [first, end) of a matrix that is kept in panels, `rows` being the first of them, in plain order.
template <typename T>
struct RowsOfPanels {
    static_assert(sizeof(T) * Products<T>::UNIT == sizeof(int32_t));
    static constexpr long UNIT_BYTES = sizeof(int32_t);  // so a panel is the transpose of a matrix of integers

    T *panels, *rows;
    int first, end, num_inputs;
    const int num_units = num_inputs / Products<T>::UNIT;

    // Copies what lies in one panel from the rows, 16 by 16 units at a time. It is written past the cache, which saves
    // reading first what is overwritten: a third of the traffic.
    void put(int panel) const {
        for_squares(panel, [&](int output, int k, int count, char* square) {
            IntVector units[LANES] = {};
            for (int r = std::max(0, first - output); r < std::min(LANES, end - output); ++r) {
                const char* row = row_at(output + r, k);
                __builtin_prefetch(row + sizeof units[r]);
                copy_units(&units[r], row, count);
            }
            transpose(units);
            const bool is_whole = output >= first && output + LANES <= end;
            for (int i = 0; i < count; ++i) {
                char* to = square + i * PANEL * UNIT_BYTES;
                if (is_whole)
                    stream(to, units[i]);
                else  // the other lanes may be another thread's
                    for (int r = std::max(0, first - output); r < std::min(LANES, end - output); ++r)
                        std::memcpy(to + r * UNIT_BYTES, reinterpret_cast<const char*>(&units[i]) + r * UNIT_BYTES,
                                    UNIT_BYTES);
            }
        });
        end_streams();
    }

    // Copies what lies in one panel to the rows.
    void get(int panel) const {
        for_squares(panel, [&](int output, int k, int count, const char* square) {
            IntVector units[LANES] = {};
            for (int i = 0; i < count; ++i) std::memcpy(&units[i], square + i * PANEL * UNIT_BYTES, sizeof units[i]);
            transpose(units);
            for (int r = std::max(0, first - output); r < std::min(LANES, end - output); ++r)
                copy_units(row_at(output + r, k), &units[r], count);
        });
    }

private:
    template <typename Body>
    void for_squares(int panel, Body body) const {
        char* of_panel = reinterpret_cast<char*>(panels) + (long)panel * PANEL * num_units * UNIT_BYTES;
        for (int k = 0; k < num_units; k += LANES)
            for (int n = 0; n < PANEL; n += LANES)
                body(panel * PANEL + n, k, std::min(LANES, num_units - k), of_panel + (k * PANEL + n) * UNIT_BYTES);
    }

    char* row_at(int output, int k) const {
        return reinterpret_cast<char*>(rows) + ((long)(output - first) * num_units + k) * UNIT_BYTES;
    }

    static void copy_units(void* to, const void* from, int count) {
        if (count == LANES)
            std::memcpy(to, from, LANES * UNIT_BYTES);
        else
            std::memcpy(to, from, count * UNIT_BYTES);
    }

    static void transpose(IntVector (&units)[LANES]) {
        exchange_all<1>(units);
        exchange_all<2>(units);
        exchange_all<4>(units);
        exchange_all<8>(units);
    }
};

// Copies one row out of the panels.
template <typename T>
inline void copy_row(const T* panels, long row, int num_inputs, T* to) {
    constexpr int UNIT = Products<T>::UNIT;
    const T* from = panels + (row / PANEL * num_inputs * PANEL + row % PANEL * UNIT);
    for (int k = 0; k < num_inputs; k += UNIT) std::copy_n(from + (long)k * PANEL, UNIT, to + k);
}

// One panel as integers from -127 to 127 times the scale of their output, in the same places.
template <typename T>
void quantise_panel(const T* panels, int num_inputs, int panel, int8_t* integers, float* scales) {
    constexpr int UNIT = Products<T>::UNIT;
    const long start = (long)panel * PANEL * num_inputs, size = (long)PANEL * num_inputs;
    float tops[PANEL * UNIT] = {}, inverses[PANEL * UNIT];
    for (long i = 0; i < size; i += PANEL * UNIT)
        for (int n = 0; n < PANEL * UNIT; ++n) tops[n] = std::max(tops[n], std::fabs(to_float(panels[start + i + n])));
    for (int n = 0; n < PANEL; ++n) {
        const float top = *std::max_element(tops + n * UNIT, tops + (n + 1) * UNIT);
        scales[panel * PANEL + n] = top / 127.0f;
        std::fill_n(inverses + n * UNIT, UNIT, top > 0.0f ? 127.0f / top : 0.0f);
    }
    for (long i = 0; i < size; i += PANEL * UNIT)
        for (int n = 0; n < PANEL * UNIT; ++n)
            integers[start + i + n] = (int8_t)std::lrintf(to_float(panels[start + i + n]) * inverses[n]);
}

// Up to TILE_ROWS rows and one panel, stored as T or as int8.
template <typename T, typename Stored, typename Out>
struct Tile {
    const T* x;
    long x_stride;
    const Stored* panel;
    const Stored* next_panel;  // to be fetched meanwhile, or null
    int num_inputs;
    const float* bias;    // 32 of them, or null
    const float* scales;  // 32 of them, or null
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
            for (int v = 0; v < 2; ++v) sums[r][v] = bias && !scales ? load(bias + v * LANES) : Vector{};
        for (int k = 0; k < num_inputs; k += P::UNIT) {
            const Stored* from = panel + (long)k * PANEL;
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
        if (scales)
            for (int r = 0; r < ROWS; ++r)
                for (int v = 0; v < 2; ++v)
                    sums[r][v] = sums[r][v] * load(scales + v * LANES) + (bias ? load(bias + v * LANES) : Vector{});
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
    const void* panels;   // of T; or of int8, with scales
    const float* bias;    // padded to whole panels; or null
    const float* scales;  // likewise
    int num_inputs, num_outputs;

    // x [num_rows, num_inputs] and out [num_rows, num_outputs]; by all threads of the team.
    void run(Team& team, const T* x, int num_rows, Out* out) const {
        if (num_rows == 0) return;
        const int count = num_panels(num_outputs), blocks = (num_rows + ROW_BLOCK - 1) / ROW_BLOCK;
        std::vector<T> spread(scales ? (long)PANEL * num_inputs : 0);
        const long task_work = (long)std::min(num_rows, ROW_BLOCK) * num_inputs * PANEL;
        const int grain = (int)std::max(1L, std::min(TASK_WORK / task_work, (long)count * blocks / (4 * team.size())));
        team.share(count * blocks, grain, [&](int task) {
            const int first = task / count * ROW_BLOCK;
            run_panel(task % count, x, first, std::min(num_rows, first + ROW_BLOCK), out, spread.data());
        });
    }

    void run_panel(int panel, const T* x, int first, int end, Out* out, T* spread) const {
        const long size = (long)PANEL * num_inputs;
        if (!scales) return run_tiles(panel, static_cast<const T*>(panels) + panel * size, true, x, first, end, out);
        const int8_t* integers = static_cast<const int8_t*>(panels) + panel * size;
        if (end - first <= 2 * TILE_ROWS) return run_tiles(panel, integers, true, x, first, end, out);
        for (long i = 0; i < size; i += LANES) store(spread + i, load(integers + i));
        run_tiles(panel, spread, false, x, first, end, out);
    }

    // Rows [first, end) in tiles of about the same number.
    template <typename Stored>
    void run_tiles(int panel, const Stored* weights, bool in_place, const T* x, int first, int end, Out* out) const {
        const int num_tiles = (end - first + TILE_ROWS - 1) / TILE_ROWS, rows = (end - first + num_tiles - 1) / num_tiles;
        for (int row = first; row < end; row += rows) {
            // The first tile is busy reading its own panel; fetching the next one is left to the last.
            const bool fetch = in_place && row > first && row + rows >= end && panel + 1 < num_panels(num_outputs);
            const Tile<T, Stored, Out> tile{x + (long)row * num_inputs,
                                            num_inputs,
                                            weights,
                                            fetch ? weights + (long)PANEL * num_inputs : nullptr,
                                            num_inputs,
                                            bias ? bias + panel * PANEL : nullptr,
                                            scales ? scales + panel * PANEL : nullptr,
                                            out + (long)row * num_outputs + panel * PANEL,
                                            num_outputs,
                                            std::min(PANEL, num_outputs - panel * PANEL)};
            tile.multiply(std::min(rows, end - row));
        }
    }
};

// One product by all threads of a team; compiled in linear.cpp alone, which takes long.
template <typename T, typename Out>
void run_linear(Team& team, const Linear<T, Out>& linear, const T* x, int num_rows, Out* out);

}  // namespace rlserve
