// A trainer's layers over packed samples, for packed.py.

#include "packed.h"

#include "packed_attention.h"

#pragma GCC visibility push(default)
extern "C" {

#define RLSERVE_PACKED(NAME, ELEMENT)                                                                                  \
    void packed_norm_##NAME(const float* rows, const float* weight, ELEMENT* out, int num_rows, int size, float eps,   \
                            float offset, int num_threads) {                                                           \
        rlserve::run_team(num_threads, [&](rlserve::Team& team) {                                                      \
            rlserve::packed_norm(team, rows, weight, out, num_rows, size, eps, offset);                                \
        });                                                                                                            \
    }                                                                                                                  \
    void packed_norm_backward_##NAME(const float* rows, const float* weight, const ELEMENT* gradient,                  \
                                     const float* of_rows, float* total, float* of_weight, ELEMENT* out, int num_rows, \
                                     int size, float eps, float offset, int num_threads) {                             \
        rlserve::run_team(num_threads, [&](rlserve::Team& team) {                                                      \
            rlserve::packed_norm_backward(team, rows, weight, gradient, of_rows, total, of_weight, out, num_rows,      \
                                          size, eps, offset);                                                          \
        });                                                                                                            \
    }                                                                                                                  \
    void packed_gate_backward_##NAME(const ELEMENT* gate_up, const ELEMENT* gradient, ELEMENT* of_gate_up,             \
                                     ELEMENT* out, int num_rows, int size, int is_gelu, int num_threads) {             \
        rlserve::run_team(num_threads, [&](rlserve::Team& team) {                                                      \
            if (is_gelu)                                                                                               \
                rlserve::gated_backward<rlserve::GeluTanh>(team, gate_up, gradient, of_gate_up, out, num_rows, size);  \
            else                                                                                                       \
                rlserve::gated_backward<rlserve::Silu>(team, gate_up, gradient, of_gate_up, out, num_rows, size);      \
        });                                                                                                            \
    }                                                                                                                  \
    void packed_attend_##NAME(const rlserve::PackedStep* step, const ELEMENT* qkv, ELEMENT* out, float* log_sums,      \
                              int num_threads) {                                                                       \
        rlserve::run_team(num_threads, [&](rlserve::Team& team) {                                                      \
            rlserve::PackedAttention<ELEMENT>{*step}.forward(team, qkv, out, log_sums);                                \
        });                                                                                                            \
    }                                                                                                                  \
    void packed_attend_backward_##NAME(const rlserve::PackedStep* step, const ELEMENT* qkv, const ELEMENT* out,        \
                                       const float* log_sums, const ELEMENT* gradient, ELEMENT* of_qkv,                \
                                       float* of_norms, int num_threads) {                                             \
        rlserve::run_team(num_threads, [&](rlserve::Team& team) {                                                      \
            rlserve::PackedAttention<ELEMENT>{*step}.backward(team, qkv, out, log_sums, gradient, of_qkv, of_norms);   \
        });                                                                                                            \
    }

RLSERVE_PACKED(float32, float)
RLSERVE_PACKED(bfloat16, rlserve::bfloat16)

void packed_add_rows_float32(const float* rows, const int64_t* places, float* out, int num_rows, int size,
                             int num_threads) {
    rlserve::run_team(num_threads, [&](rlserve::Team& team) {
        rlserve::packed_add_rows(team, rows, places, out, num_rows, size);
    });
}
}
