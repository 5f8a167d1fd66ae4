// What a trainer's layers have beside products and attention, forward and backward: norms and gated activations.
// Legend: T rows, H hidden size, I intermediate size, B blocks of rows.
#pragma once

#include <cmath>

#include "pointwise.h"
#include "team.h"
#include "vector.h"

namespace rlserve {

constexpr int PACKED_NORM_ROWS = 32;  // of a block, whose part of the weights' gradient is one sum; mirrored in packed.py

inline float inverse_root(const float* row, int size, float eps) {
    Vector squares{};
    int i = 0;
    for (; i + LANES <= size; i += LANES) squares += load(row + i) * load(row + i);
    float total = sum(squares);
    for (; i < size; ++i) total += row[i] * row[i];
    return 1.0f / std::sqrt(total / size + eps);
}

template <typename Element>
inline void scale_row(const float* row, const float* weight, float root, float offset, int size, Element* out) {
    int i = 0;
    for (; i + LANES <= size; i += LANES) store(out + i, load(row + i) * root * (load(weight + i) + offset));
    for (; i < size; ++i) assign(out[i], row[i] * root * (weight[i] + offset));
}

// out [T, H] = the rows over their root mean square, times weight + offset.
template <typename Element>
void packed_norm(Team& team, const float* rows, const float* weight, Element* out, int num_rows, int size, float eps,
                 float offset) {
    team.share(num_rows, row_grain(team, num_rows, size), [&](int t) {
        const float* row = rows + (long)t * size;
        scale_row(row, weight, inverse_root(row, size, eps), offset, size, out + (long)t * size);
    });
}

// The gradient of the rows from that of what `packed_norm` gave, and `of_rows` [T, H] added to it, if there is any; the
// parts of the weights' gradient [B, H]; and, if `out` is not null, what `packed_norm` gave once more.
template <typename Element>
void packed_norm_backward(Team& team, const float* rows, const float* weight, const Element* gradient,
                          const float* of_rows, float* total, float* of_weight, Element* out, int num_rows, int size,
                          float eps, float offset) {
    const int num_blocks = (num_rows + PACKED_NORM_ROWS - 1) / PACKED_NORM_ROWS;
    team.share(num_blocks, 1, [&](int block) {
        float* block_weight = of_weight + (long)block * size;
        std::fill_n(block_weight, size, 0.0f);
        for (int t = block * PACKED_NORM_ROWS; t < std::min(num_rows, (block + 1) * PACKED_NORM_ROWS); ++t) {
            const long at = (long)t * size;
            const float *row = rows + at, *added = of_rows ? of_rows + at : nullptr;
            const Element* from = gradient + at;
            float* to = total + at;
            const float root = inverse_root(row, size, eps);
            Vector products{};
            int i = 0;
            for (; i + LANES <= size; i += LANES) {
                const Vector product = load(from + i) * load(row + i);
                store(block_weight + i, load(block_weight + i) + product * root);
                products += product * (load(weight + i) + offset);
            }
            float product = sum(products);
            for (; i < size; ++i) {
                block_weight[i] += to_float(from[i]) * row[i] * root;
                product += to_float(from[i]) * row[i] * (weight[i] + offset);
            }
            const float along = product * root * root * root / size;
            for (i = 0; i + LANES <= size; i += LANES)
                store(to + i, load(from + i) * (load(weight + i) + offset) * root - load(row + i) * along +
                                  (added ? load(added + i) : Vector{}));
            for (; i < size; ++i)
                to[i] = to_float(from[i]) * (weight[i] + offset) * root - row[i] * along + (added ? added[i] : 0.0f);
            if (out) scale_row(row, weight, root, offset, size, out + at);
        }
    });
}

// out [., H] += the rows [T, H], each where `places` says, in their order.
inline void packed_add_rows(Team& team, const float* rows, const int64_t* places, float* out, int num_rows, int size) {
    constexpr int COLUMNS = 256;
    team.share((size + COLUMNS - 1) / COLUMNS, 1, [&](int part) {
        const int first = part * COLUMNS, end = std::min(size, first + COLUMNS);
        for (int t = 0; t < num_rows; ++t) {
            const float* from = rows + (long)t * size;
            float* to = out + places[t] * size;
            int i = first;
            for (; i + LANES <= end; i += LANES) store(to + i, load(to + i) + load(from + i));
            for (; i < end; ++i) to[i] += from[i];
        }
    });
}

// How x / (1 + e^exponent(x)) goes up with x: s + x s (1 - s) * slope, where s = 1 / (1 + e^exponent).
inline Vector slope_of(Silu, Vector) { return broadcast(1.0f); }

inline Vector slope_of(GeluTanh, Vector x) { return 1.5957691216057308f * (1.0f + 0.134145f * x * x); }

// The gradient of gate and up [T, 2 I] from that of what `gated` gave [T, I], and that itself, once more.
template <typename Activation, typename Element>
void gated_backward(Team& team, const Element* gate_up, const Element* gradient, Element* of_gate_up, Element* out,
                    int num_rows, int size) {
    team.share(num_rows, row_grain(team, num_rows, size), [&](int t) {
        const Element *gate = gate_up + (long)t * 2 * size, *up = gate + size, *from = gradient + (long)t * size;
        Element *of_gate = of_gate_up + (long)t * 2 * size, *of_up = of_gate + size, *to = out + (long)t * size;
        const auto compute = [&](Vector x, Vector u, Vector g, Vector& gate_gradient, Vector& up_gradient, Vector& made) {
            const Vector share = 1.0f / (exponential(Activation::exponent(x)) + 1.0f), activated = x * share;
            made = activated * u;
            up_gradient = g * activated;
            gate_gradient = g * u * (share + activated * (1.0f - share) * slope_of(Activation{}, x));
        };
        Vector gate_gradient, up_gradient, made;
        int i = 0;
        for (; i + LANES <= size; i += LANES) {
            compute(load(gate + i), load(up + i), load(from + i), gate_gradient, up_gradient, made);
            store(of_gate + i, gate_gradient);
            store(of_up + i, up_gradient);
            store(to + i, made);
        }
        for (; i < size; ++i) {
            compute(broadcast(to_float(gate[i])), broadcast(to_float(up[i])), broadcast(to_float(from[i])),
                    gate_gradient, up_gradient, made);
            assign(of_gate[i], gate_gradient[0]);
            assign(of_up[i], up_gradient[0]);
            assign(to[i], made[0]);
        }
    });
}

}  // namespace rlserve
