// Weights in and out of panels, and products, for programs and for callers from outside.

#include <algorithm>
#include <vector>

#include "low_rank.h"

namespace rlserve {

template <typename T, typename Out>
void run_linear(Team& team, const Linear<T, Out>& linear, const T* x, int num_rows, Out* out) {
    linear.run(team, x, num_rows, out);
}

template void run_linear(Team&, const Linear<float, float>&, const float*, int, float*);
template void run_linear(Team&, const Linear<bfloat16, bfloat16>&, const bfloat16*, int, bfloat16*);
template void run_linear(Team&, const Linear<bfloat16, float>&, const bfloat16*, int, float*);

template <typename T>
void add_low_ranks(Team& team, LowRanks<T>& adapters, int place, const T* x, int num_inputs, T* out, int num_outputs) {
    adapters.add(team, place, x, num_inputs, out, num_outputs);
}

template void add_low_ranks(Team&, LowRanks<float>&, int, const float*, int, float*, int);
template void add_low_ranks(Team&, LowRanks<bfloat16>&, int, const bfloat16*, int, bfloat16*, int);

namespace {

// Rows of one matrix in panels. Mirrored by Rows in panels.py.
struct Rows {
    void *panels, *rows;
    uint64_t sum;  // of what was put, see weighted_sum.h
    int32_t first, num_rows, num_inputs;

    int first_panel() const { return first / PANEL; }
    int num_tasks() const { return num_panels(first + num_rows) - first_panel(); }
};

// Calls body(matrix, panel, rows) for all panels that hold some of them.
template <typename T, typename Body>
void for_panels(Rows* all, int num, int num_threads, Body body) {
    std::vector<int> ends(num);
    for (int i = 0; i < num; ++i) ends[i] = (i ? ends[i - 1] : 0) + all[i].num_tasks();
    run_team(num_threads, [&](Team& team) {
        team.share(num ? ends.back() : 0, 1, [&](int task) {
            const int i = (int)(std::upper_bound(ends.begin(), ends.end(), task) - ends.begin());
            const RowsOfPanels<T> matrix{static_cast<T*>(all[i].panels), static_cast<T*>(all[i].rows), all[i].first,
                                         all[i].first + all[i].num_rows, all[i].num_inputs};
            body(matrix, all[i].first_panel() + task - (i ? ends[i - 1] : 0), all[i]);
        });
    });
}

template <typename T>
void put_rows(Rows* all, int num, int num_threads) {
    for_panels<T>(all, num, num_threads, [](const RowsOfPanels<T>& matrix, int panel, Rows& rows) {
        add_to(rows.sum, matrix.put(panel));
    });
}

template <typename T>
void get_rows(Rows* all, int num, int num_threads) {
    for_panels<T>(all, num, num_threads, [](const RowsOfPanels<T>& matrix, int panel, Rows&) { matrix.get(panel); });
}

template <typename T>
void quantise(const T* panels, int8_t* integers, float* scales, int num_outputs, int num_inputs, int num_threads) {
    run_team(num_threads, [&](Team& team) {
        team.share(num_panels(num_outputs), 1,
                   [&](int panel) { quantise_panel(panels, num_inputs, panel, integers, scales); });
    });
}

template <typename T>
void multiply(const T* x, const void* panels, const float* bias, const float* scales, float* out, int num_rows,
              int num_outputs, int num_inputs, int num_threads) {
    run_team(num_threads, [&](Team& team) {
        run_linear(team, Linear<T, float>{panels, bias, scales, num_inputs, num_outputs}, x, num_rows, out);
    });
}

}  // namespace
}  // namespace rlserve

#pragma GCC visibility push(default)
extern "C" {

// Whether products of bfloat16 are best made here. oneDNN makes better use of a matrix unit (AMX); elsewhere on x86 it
// multiplies pairs of them where the processor does, no faster than we do, and widens them one by one where not.
int has_fast_bfloat16() {
#if defined(__AVX2__) && !defined(__AMX_BF16__)
    return 1;
#else
    return 0;
#endif
}

#define RLSERVE_LINEAR(NAME, ELEMENT)                                                                              \
    void put_rows_##NAME(rlserve::Rows* all, int num, int num_threads) {                                           \
        rlserve::put_rows<ELEMENT>(all, num, num_threads);                                                         \
    }                                                                                                              \
    void get_rows_##NAME(rlserve::Rows* all, int num, int num_threads) {                                           \
        rlserve::get_rows<ELEMENT>(all, num, num_threads);                                                         \
    }                                                                                                              \
    void quantise_##NAME(const ELEMENT* panels, int8_t* integers, float* scales, int num_outputs, int num_inputs,  \
                         int num_threads) {                                                                        \
        rlserve::quantise(panels, integers, scales, num_outputs, num_inputs, num_threads);                         \
    }                                                                                                              \
    void multiply_##NAME(const ELEMENT* x, const void* panels, const float* bias, const float* scales, float* out, \
                         int num_rows, int num_outputs, int num_inputs, int num_threads) {                         \
        rlserve::multiply(x, panels, bias, scales, out, num_rows, num_outputs, num_inputs, num_threads);           \
    }

RLSERVE_LINEAR(float32, float)
RLSERVE_LINEAR(bfloat16, rlserve::bfloat16)
}
