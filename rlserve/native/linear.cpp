// Packing of weights, and single products, for callers from outside.

#include "linear.h"

namespace rlserve {
namespace {

template <typename T>
void pack(const T* weight, T* packed, int num_outputs, int num_inputs, int num_threads) {
    run_team(num_threads, [&](Team& team) {
        team.share(num_panels(num_outputs), 1,
                   [&](int panel) { pack_panel(weight, num_outputs, num_inputs, panel, packed); });
    });
}

template <typename T>
void quantise(const T* weight, int8_t* packed, float* scales, int num_outputs, int num_inputs, int num_threads) {
    run_team(num_threads, [&](Team& team) {
        team.share(num_panels(num_outputs), 1,
                   [&](int panel) { quantise_panel(weight, num_outputs, num_inputs, panel, packed, scales); });
    });
}

template <typename T>
void multiply(const T* x, const void* packed, const float* bias, const float* scales, float* out, int num_rows,
              int num_outputs, int num_inputs, int num_threads) {
    run_team(num_threads, [&](Team& team) {
        Linear<T, float>{packed, bias, scales, num_inputs, num_outputs}.run(team, x, num_rows, out);
    });
}

}  // namespace
}  // namespace rlserve

extern "C" {

// Whether products of bfloat16 are best made here: the processor multiplies pairs of them, and has no matrix unit,
// which oneDNN would make use of.
int has_fast_bfloat16() {
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
    return 1;
#else
    return 0;
#endif
}

#define RLSERVE_LINEAR(NAME, ELEMENT)                                                                              \
    void pack_##NAME(const ELEMENT* weight, ELEMENT* packed, int num_outputs, int num_inputs, int num_threads) {   \
        rlserve::pack(weight, packed, num_outputs, num_inputs, num_threads);                                       \
    }                                                                                                              \
    void quantise_##NAME(const ELEMENT* weight, int8_t* packed, float* scales, int num_outputs, int num_inputs,    \
                         int num_threads) {                                                                        \
        rlserve::quantise(weight, packed, scales, num_outputs, num_inputs, num_threads);                           \
    }                                                                                                              \
    void multiply_##NAME(const ELEMENT* x, const void* packed, const float* bias, const float* scales, float* out, \
                         int num_rows, int num_outputs, int num_inputs, int num_threads) {                         \
        rlserve::multiply(x, packed, bias, scales, out, num_rows, num_outputs, num_inputs, num_threads);           \
    }

RLSERVE_LINEAR(float32, float)
RLSERVE_LINEAR(bfloat16, rlserve::bfloat16)
}
