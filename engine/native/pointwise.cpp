// Norms and the activation of the MLP: one pass over memory each.
// Legend: T tokens, H hidden size, I intermediate size.

#include <cmath>

#include "vector.h"

namespace rlserve {
namespace {

constexpr long PARALLEL_FROM = 1 << 16;  // elements; below, waking threads costs more than they save

template <typename Element>
void norm_row(const Element* hidden, const Element* weight, Element* out, int size, float eps, float offset) {
    Vector squares{};
    int i = 0;
    for (; i + LANES <= size; i += LANES) {
        const Vector x = load(hidden + i);
        squares += x * x;
    }
    float total = sum(squares);
    for (int j = i; j < size; ++j) total += to_float(hidden[j]) * to_float(hidden[j]);
    const float scale = 1.0f / std::sqrt(total / size + eps);
    for (i = 0; i + LANES <= size; i += LANES) 
        store(out + i, load(hidden + i) * scale * (load(weight + i) + offset));
    for (; i < size; ++i) assign(out[i], to_float(hidden[i]) * scale * (to_float(weight[i]) + offset));
}

template <typename Element>
void add_row(Element* residual, const Element* update, int size) {
    int i = 0;
    for (; i + LANES <= size; i += LANES) store(residual + i, load(residual + i) + load(update + i));
    for (; i < size; ++i) assign(residual[i], to_float(residual[i]) + to_float(update[i]));
}

// `update` may be null: then it is the norm alone.
template <typename Element>
void add_rms_norm(Element* residual, const Element* update, const Element* weight, Element* out, int num_tokens,
                  int size, float eps, float offset, int num_threads) {
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1 && (long)num_tokens * size >= PARALLEL_FROM)
    for (int t = 0; t < num_tokens; ++t) {
        Element* row = residual + (long)t * size;
        if (update) add_row(row, update + (long)t * size, size);
        norm_row(row, weight, out + (long)t * size, size, eps, offset);
    }
}

// x / (1 + e^-x) (arXiv 1702.03118).
struct Silu {
    template <typename Number>
    static Number exponent(Number x) {
        return -x;
    }
};

// GELU by the hyperbolic tangent (arXiv 1606.08415): x (1 + tanh u) / 2 = x / (1 + e^-2u).
struct GeluTanh {
    template <typename Number>
    static Number exponent(Number x) {
        return -1.5957691216057308f * (x + 0.044715f * x * x * x);
    }
};

// out = x / (1 + e^exponent(x)) * up, where x is the gate.
template <typename Activation, typename Element>
void gated(const Element* gate_up, Element* out, int num_tokens, int size, int num_threads) {
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1 && (long)num_tokens * size >= PARALLEL_FROM)
    for (int t = 0; t < num_tokens; ++t) {
        const Element* gate = gate_up + (long)t * 2 * size;
        const Element* up = gate + size;
        Element* row = out + (long)t * size;
        int i = 0;
        for (; i + LANES <= size; i += LANES) {
            const Vector x = load(gate + i);
            store(row + i, x / (exponential(Activation::exponent(x)) + 1.0f) * load(up + i));
        }
        for (; i < size; ++i) {
            const float x = to_float(gate[i]);
            assign(row[i], x / (std::exp(Activation::exponent(x)) + 1.0f) * to_float(up[i]));
        }
    }
}

}  // namespace
}  // namespace rlserve

extern "C" {

void add_rms_norm_float32(float* residual, const float* update, const float* weight, float* out, int num_tokens,
                          int size, float eps, float offset, int num_threads) {
    rlserve::add_rms_norm(residual, update, weight, out, num_tokens, size, eps, offset, num_threads);
}

void add_rms_norm_bfloat16(rlserve::bfloat16* residual, const rlserve::bfloat16* update,
                           const rlserve::bfloat16* weight, rlserve::bfloat16* out, int num_tokens, int size,
                           float eps, float offset, int num_threads) {
    rlserve::add_rms_norm(residual, update, weight, out, num_tokens, size, eps, offset, num_threads);
}

void silu_mul_float32(const float* gate_up, float* out, int num_tokens, int size, int num_threads) {
    rlserve::gated<rlserve::Silu>(gate_up, out, num_tokens, size, num_threads);
}

void silu_mul_bfloat16(const rlserve::bfloat16* gate_up, rlserve::bfloat16* out, int num_tokens, int size,
                       int num_threads) {
    rlserve::gated<rlserve::Silu>(gate_up, out, num_tokens, size, num_threads);
}

void gelu_tanh_mul_float32(const float* gate_up, float* out, int num_tokens, int size, int num_threads) {
    rlserve::gated<rlserve::GeluTanh>(gate_up, out, num_tokens, size, num_threads);
}

void gelu_tanh_mul_bfloat16(const rlserve::bfloat16* gate_up, rlserve::bfloat16* out, int num_tokens, int size,
                            int num_threads) {
    rlserve::gated<rlserve::GeluTanh>(gate_up, out, num_tokens, size, num_threads);
}
}
