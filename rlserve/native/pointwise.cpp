// The small operations one at a time, for decoders that are not programs.

#include "pointwise.h"

namespace rlserve {
namespace {

constexpr long PARALLEL_FROM = 1 << 16;  // elements; below, waking threads costs more than they save

int threads_for(long num_elements, int num_threads) { return num_elements >= PARALLEL_FROM ? num_threads : 1; }

}  // namespace
}  // namespace rlserve

#pragma GCC visibility push(default)
extern "C" {

#define RLSERVE_POINTWISE(NAME, ELEMENT)                                                                           \
    void add_rms_norm_##NAME(ELEMENT* residual, const ELEMENT* update, const ELEMENT* weight, ELEMENT* out,        \
                             int num_tokens, int size, float eps, float offset, int num_threads) {                 \
        rlserve::run_team(rlserve::threads_for((long)num_tokens * size, num_threads), [&](rlserve::Team& team) {   \
            rlserve::add_rms_norm(team, residual, update, weight, out, num_tokens, size, eps, offset);             \
        });                                                                                                        \
    }                                                                                                              \
    void silu_mul_##NAME(const ELEMENT* gate_up, ELEMENT* out, int num_tokens, int size, int num_threads) {        \
        rlserve::run_team(rlserve::threads_for((long)num_tokens * size, num_threads), [&](rlserve::Team& team) {   \
            rlserve::gated<rlserve::Silu>(team, gate_up, out, num_tokens, size);                                   \
        });                                                                                                        \
    }                                                                                                              \
    void gelu_tanh_mul_##NAME(const ELEMENT* gate_up, ELEMENT* out, int num_tokens, int size, int num_threads) {   \
        rlserve::run_team(rlserve::threads_for((long)num_tokens * size, num_threads), [&](rlserve::Team& team) {   \
            rlserve::gated<rlserve::GeluTanh>(team, gate_up, out, num_tokens, size);                               \
        });                                                                                                        \
    }

RLSERVE_POINTWISE(float32, float)
RLSERVE_POINTWISE(bfloat16, rlserve::bfloat16)

void cap_float32(float* numbers, int num_rows, int size, float limit, int num_threads) {
    rlserve::run_team(num_threads, [&](rlserve::Team& team) { rlserve::cap(team, numbers, num_rows, size, limit); });
}
}
