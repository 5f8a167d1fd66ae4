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
void multiply(const T* x, const T* packed, const float* bias, float* out, int num_rows, int num_outputs,
              int num_inputs, int num_threads) {
    run_team(num_threads, [&](Team& team) {
        Linear<T, float>{packed, bias, num_inputs, num_outputs}.run(team, x, num_rows, out);
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

void pack_float32(const float* weight, float* packed, int num_outputs, int num_inputs, int num_threads) {
    rlserve::pack(weight, packed, num_outputs, num_inputs, num_threads);
}

void pack_bfloat16(const rlserve::bfloat16* weight, rlserve::bfloat16* packed, int num_outputs, int num_inputs,
                   int num_threads) {
    rlserve::pack(weight, packed, num_outputs, num_inputs, num_threads);
}

void multiply_float32(const float* x, const float* packed, const float* bias, float* out, int num_rows,
                      int num_outputs, int num_inputs, int num_threads) {
    rlserve::multiply(x, packed, bias, out, num_rows, num_outputs, num_inputs, num_threads);
}

void multiply_bfloat16(const rlserve::bfloat16* x, const rlserve::bfloat16* packed, const float* bias, float* out,
                       int num_rows, int num_outputs, int num_inputs, int num_threads) {
    rlserve::multiply(x, packed, bias, out, num_rows, num_outputs, num_inputs, num_threads);
}
}
