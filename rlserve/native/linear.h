// Products with a matrix of weights: out[m][n] = bias[n] + sum over k of x[m][k] * weight[n][k].
//
// The weights are kept in panels of 32 outputs, [panel][k / UNIT][32][UNIT]: one panel is read from end to end
// while up to 14 rows of x stay in registers, as sums. A sum runs over k in order, whatever rows there are beside it.
// Weights may be kept as int8 in the same places, with a scale for each output: a panel is then spread out to numbers
// of x's type, which hold such integers exactly, and the sums are scaled at the end.
#pragma once

#include <array>
#include <cmath>
#include <type_traits>
#include <utility>
#include <vector>

#include "team.h"
#include "vector.h"
#include "weighted_sum.h"

namespace rlserve {

constexpr int PANEL = 32;  // mirrored by _PANEL in panels.py
constexpr int TILE_VECTORS = 2, TILE_COLUMNS = TILE_VECTORS * LANES;
#ifdef __AVX512F__
constexpr int TILE_ROWS = 14;  // 28 of 32 registers are sums
#else
constexpr int TILE_ROWS = 6;  // 12 of 16
#endif
constexpr int FETCHING_ROWS = TILE_ROWS / 2;  // of a tile, so that its time hides the fetching of the next panel
constexpr int ROW_BLOCK = 8 * TILE_ROWS;        // rows that go over a panel together, and the next block right behind
constexpr int WIDENED_ROWS = 2 * ROW_BLOCK;     // that go over all panels together: each thread widens them for itself
constexpr long TASK_WORK = 1 << 19;           // multiplications of a task, about 5 microseconds

inline int num_panels(int num_outputs) { return (num_outputs + PANEL - 1) / PANEL; }

// Rows [first, end) of a matrix that is kept in panels, `rows` being the first of them, in plain order.
template <typename T>
struct RowsOfPanels {
    static_assert(sizeof(T) * Products<T>::UNIT == sizeof(int32_t));
    static constexpr long UNIT_BYTES = sizeof(int32_t);  // so a panel is the transpose of a matrix of integers

    T *panels, *rows;
    int first, end, num_inputs;
    const int num_units = num_inputs / Products<T>::UNIT;

    // Copies what lies in one panel from the rows, LANES by LANES units at a time. It is written past the cache, which saves
    // reading first what is overwritten: a third of the traffic. Returns the weighted sum of what is copied, as a part
    // of that of all rows: they are summed up first, in the order of memory, and lie in the cache then. Those of the
    // next panel are fetched meanwhile.
    uint64_t put(int panel) const {
        const uint64_t total = sum(panel);
        const char* ahead = row_at(std::max(first, panel * PANEL) + PANEL, 0);
        for_squares(panel, [&](int output, int k, int count, char* square) {
            const bool is_whole = output >= first && output + LANES <= end;
            if (is_whole && count == LANES) return put_square(row_at(output, k), square, ahead);
            IntVector units[LANES] = {};
            for (int r = std::max(0, first - output); r < std::min(LANES, end - output); ++r)
                copy_units(&units[r], row_at(output + r, k), count);
            transpose(units);
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
        return total;
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
    // The same for a whole one, with all of it in registers. Fetches as much from `ahead` on, and moves it.
    void put_square(const char* row, char* square, const char*& ahead) const {
        IntVector units[LANES];
        for (int r = 0; r < LANES; ++r) {
            __builtin_prefetch(ahead + r * sizeof units[r], 0, 2);
            std::memcpy(&units[r], row + r * num_units * UNIT_BYTES, sizeof units[r]);
        }
        ahead += sizeof units;
        transpose(units);
        for (int i = 0; i < LANES; ++i) stream(square + i * PANEL * UNIT_BYTES, units[i]);
    }

    uint64_t sum(int panel) const {
        typedef std::conditional_t<sizeof(T) == sizeof(int16_t), int16_t, int32_t> Bits;
        const int from = std::max(first, panel * PANEL), to = std::min(end, (panel + 1) * PANEL);
        const long start = (long)(from - first) * num_inputs;
        return weighted_sum(reinterpret_cast<const Bits*>(rows) + start, (long)(to - from) * num_inputs, start);
    }

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

// Up to TILE_ROWS rows and TILE_COLUMNS outputs of a panel, which is stored as T or as int8.
template <typename T, typename Stored>
struct Tile {
    typedef Products<T> P;

    const typename P::Factor* x;
    long x_stride;
    const Stored* panel;       // from the first of these outputs on
    const Stored* next_panel;  // to be fetched meanwhile, or null
    int num_inputs;
    const float* bias;    // of these outputs, or null
    const float* scales;  // of these outputs, or null
    void* out;
    bool is_float;  // what `out` holds; else T
    long out_stride;
    int num_columns;  // outputs that there are

    template <int ROWS>
    void multiply() const {
        if constexpr (ROWS >= FETCHING_ROWS)
            if (next_panel) return multiply_and_fetch<ROWS, true>();
        multiply_and_fetch<ROWS, false>();
    }

    template <int ROWS, bool FETCH>
    void multiply_and_fetch() const {
        Vector sums[ROWS][TILE_VECTORS];
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < TILE_VECTORS; ++v) sums[r][v] = bias && !scales ? load(bias + v * LANES) : Vector{};
        for (int k = 0; k < num_inputs; k += P::UNIT) {
            const Stored* from = panel + (long)k * PANEL;
            if (FETCH)
                for (int v = 0; v < TILE_VECTORS; ++v)
                    __builtin_prefetch(next_panel + (long)k * PANEL + v * LANES * P::UNIT, 0, 2);
#pragma GCC unroll 2
            for (int part = 0; part < P::PARTS; ++part) {
                const auto first = P::part(P::units(from), part);
                const auto second = P::part(P::units(from + LANES * P::UNIT), part);
                for (int r = 0; r < ROWS; ++r) {
                    const typename P::Scalar scalar = P::scalar(x + r * x_stride + k, part);
                    sums[r][0] = P::multiply_add(sums[r][0], first, scalar);
                    sums[r][1] = P::multiply_add(sums[r][1], second, scalar);
                }
            }
        }
        if (scales)
            for (int r = 0; r < ROWS; ++r)
                for (int v = 0; v < TILE_VECTORS; ++v)
                    sums[r][v] = sums[r][v] * load(scales + v * LANES) + (bias ? load(bias + v * LANES) : Vector{});
        if (is_float)
            write(sums, static_cast<float*>(out));
        else
            write(sums, static_cast<T*>(out));
    }

    template <int ROWS, typename Out>
    void write(const Vector (&sums)[ROWS][TILE_VECTORS], Out* to) const {
        for (int r = 0; r < ROWS; ++r) {
            Out* row = to + r * out_stride;
            if (num_columns == TILE_COLUMNS) {
                for (int v = 0; v < TILE_VECTORS; ++v) store(row + v * LANES, sums[r][v]);
            } else {
                float columns[TILE_COLUMNS];
                for (int v = 0; v < TILE_VECTORS; ++v) store(columns + v * LANES, sums[r][v]);
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
    typedef typename Products<T>::Factor Factor;

    const void* panels;   // of T; or of int8, with scales
    const float* bias;    // padded to whole panels; or null
    const float* scales;  // likewise
    int num_inputs, num_outputs;
    int first_panel = 0;  // those before it are left out

    // x [num_rows, num_inputs] and out [num_rows, num_outputs]; by all threads of the team.
    void run(Team& team, const T* x, int num_rows, Out* out) const {
        if (num_rows == 0) return;
        constexpr bool IS_WIDENED = !std::is_same<Factor, T>::value;
        // A panel of integers is spread out for each block anew.
        const int most = IS_WIDENED || scales ? WIDENED_ROWS : ROW_BLOCK;
        const int count = num_panels(num_outputs) - first_panel, rows = rows_of_block(num_rows, most);
        const int blocks = (num_rows + rows - 1) / rows;
        const long task_work = (long)std::min(num_rows, rows) * num_inputs * PANEL;
        const int grain = (int)std::max(1L, std::min(TASK_WORK / task_work, (long)count * blocks / (4 * team.size())));
        Factors factors{x, num_inputs};
        team.share(count * blocks, grain, [&](int task) {
            const int panel = first_panel + (IS_WIDENED ? task % count : task / blocks);
            const int first = (IS_WIDENED ? task / count : task % blocks) * rows, end = std::min(num_rows, first + rows);
            run_panel(panel, factors.of_rows(first, end), end - first, out + (long)first * num_outputs);
        });
    }

private:
    // Blocks of whole tiles, and of about the same number of rows.
    static int rows_of_block(int num_rows, int most) {
        const int blocks = (num_rows + most - 1) / most, rows = (num_rows + blocks - 1) / blocks;
        return (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    }

    // Rows of x as products take them: where they are, or widened by each thread for itself, block by block.
    struct Factors {
        const T* x;
        int num_inputs;
        int block_start = -1;

        const Factor* of_rows(int first, int end) {
            if constexpr (std::is_same<Factor, T>::value) {
                return x + (long)first * num_inputs;
            } else {
                thread_local std::vector<Factor> wide;
                if (block_start != first) {
                    const long size = (long)(end - first) * num_inputs;
                    if (wide.size() < (size_t)size) wide.resize(size);
                    widen(x + (long)first * num_inputs, size, wide.data());
                    block_start = first;
                }
                return wide.data();
            }
        }

        static void widen(const T* from, long size, Factor* to) {
            long i = 0;
            for (; i + LANES <= size; i += LANES) store(to + i, load(from + i));
            for (; i < size; ++i) to[i] = to_float(from[i]);
        }
    };

    void run_panel(int panel, const Factor* x, int num_rows, Out* out) const {
        const long size = (long)PANEL * num_inputs;
        if (!scales) return run_tiles(panel, static_cast<const T*>(panels) + panel * size, true, x, num_rows, out);
        const int8_t* integers = static_cast<const int8_t*>(panels) + panel * size;
        if (num_rows <= 2 * TILE_ROWS) return run_tiles(panel, integers, true, x, num_rows, out);
        thread_local std::vector<T> spread;
        if (spread.size() < (size_t)size) spread.resize(size);
        for (long i = 0; i < size; i += LANES) store(spread.data() + i, load(integers + i));
        run_tiles(panel, spread.data(), false, x, num_rows, out);
    }

    // All rows in tiles of about the same number.
    template <typename Stored>
    void run_tiles(int panel, const Stored* weights, bool in_place, const Factor* x, int num_rows, Out* out) const {
        const int num_tiles = (num_rows + TILE_ROWS - 1) / TILE_ROWS, rows = (num_rows + num_tiles - 1) / num_tiles;
        for (int row = 0; row < num_rows; row += rows) {
            // The first tile is busy reading its own panel; fetching the next one is left to the last.
            const bool fetch = in_place && row > 0 && row + rows >= num_rows && panel + 1 < num_panels(num_outputs);
            for (int n = 0; n < PANEL && panel * PANEL + n < num_outputs; n += TILE_COLUMNS) {
                const Stored* outputs = weights + n * Products<T>::UNIT;
                const Tile<T, Stored> tile{x + (long)row * num_inputs,
                                           num_inputs,
                                           outputs,
                                           fetch ? outputs + (long)PANEL * num_inputs : nullptr,
                                           num_inputs,
                                           bias ? bias + panel * PANEL + n : nullptr,
                                           scales ? scales + panel * PANEL + n : nullptr,
                                           out + (long)row * num_outputs + panel * PANEL + n,
                                           std::is_same<Out, float>::value,
                                           num_outputs,
                                           std::min(TILE_COLUMNS, num_outputs - panel * PANEL - n)};
                tile.multiply(std::min(rows, num_rows - row));
            }
        }
    }
};

// One product by all threads of a team; compiled in linear.cpp alone, which takes long.
template <typename T, typename Out>
void run_linear(Team& team, const Linear<T, Out>& linear, const T* x, int num_rows, Out* out);

}  // namespace rlserve
