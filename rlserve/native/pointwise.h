// Norms and the activation of the MLP: one pass over memory each.
// Legend: T tokens, H hidden size, I intermediate size.
#pragma once

#include <cmath>

#include "team.h"
#include "vector.h"

namespace rlserve {

// Tasks of a phase that works on rows of some numbers: as many as pay, for a few rows each.
inline int row_grain(const Team& team, int num_rows, int row_size) {
    constexpr int TASK_SIZE = 1 << 13;
    return std::max(1, std::min(TASK_SIZE / std::max(1, row_size), num_rows / (2 * team.size())));
}

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

// residual += update, where there is one; out = norm(residual). All [T, H].
template <typename Element>
void add_rms_norm(Team& team, Element* residual, const Element* update, const Element* weight, Element* out,
                  int num_tokens, int size, float eps, float offset) {
    team.share(num_tokens, row_grain(team, num_tokens, size), [&](int t) {
        Element* row = residual + (long)t * size;
        if (update) add_row(row, update + (long)t * size, size);
        norm_row(row, weight, out + (long)t * size, size, eps, offset);
    });
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

// out [T, I] = x / (1 + e^exponent(x)) * up, where x is the gate, from gate and up [T, 2 I].
template <typename Activation, typename Element>
void gated(Team& team, const Element* gate_up, Element* out, int num_tokens, int size) {
    team.share(num_tokens, row_grain(team, num_tokens, size), [&](int t) {
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
    });
}

// Numbers [rows, size] become limit * tanh(number / limit).
inline void cap(Team& team, float* numbers, int num_rows, int size, float limit) {
    team.share(num_rows, 1, [&](int r) {
        float* row = numbers + (long)r * size;
        for (int i = 0; i < size; i += LANES) {
            float lanes[LANES] = {};
            const int count = std::min(LANES, size - i);
            std::copy_n(row + i, count, lanes);
            store(lanes, hyperbolic_tangent(load(lanes) * (1.0f / limit)) * limit);
            std::copy_n(lanes, count, row + i);
        }
    });
}

}  // namespace rlserve
