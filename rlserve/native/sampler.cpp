// Draws tokens by the inverse of the distribution function in vocabulary order. Nothing is sorted.
// Legend: R rows of logits, V vocabulary, B draws.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "vector.h"

namespace rlserve {
namespace {

constexpr int SPAN = 256;  // tokens whose weights are summed in float; sums of spans are added in double

// weights[i] = exp((logits[i] - top) / temperature), padded with zeros; returns their sum. Never inlined: all callers
// are to get the same bits, and a compiler may fuse operations differently at each place.
template <typename Element>
[[gnu::noinline]] double exponentiate(const Element* logits, int num_tokens, float top, float inverse_temperature, float* weights) {
    double total = 0;
    for (int start = 0; start < num_tokens; start += SPAN) {
        const int end = std::min(num_tokens, start + SPAN);
        Vector partial{};
        int i = start;
        for (; i + LANES <= end; i += LANES) {
            const Vector weight = exponential((load(logits + i) - top) * inverse_temperature);
            store(weights + i, weight);
            partial += weight;
        }
        float span_total = sum(partial);
        for (; i < end; ++i) {
            weights[i] = exponential(broadcast((to_float(logits[i]) - top) * inverse_temperature))[0];
            span_total += weights[i];
        }
        total += span_total;
    }
    return total;
}

// Of a token, where `total` is the sum of the weights of all that could be drawn.
double log_probability(float logit, float top, float inverse_temperature, double total) {
    return (logit - top) * inverse_temperature - std::log(total);
}

double total_from(const float* weights, int num_tokens, float threshold, bool count) {
    double total = 0;
    for (int start = 0; start < num_tokens; start += SPAN) {
        const int end = std::min(num_tokens, start + SPAN);
        Vector partial{};
        for (int i = start; i < end; i += LANES) {  // the padding is zero, and a threshold is positive
            const Vector weight = load(weights + i);
            partial += weight >= threshold ? (count ? broadcast(1.0f) : weight) : Vector{};
        }
        total += sum(partial);
    }
    return total;
}

// The largest threshold at which the weights (or the number) of the tokens not below it reach `target`.
// The bits of positive floats are in the order of their values, so it is found bit by bit, exactly.
float find_threshold(const float* weights, int num_tokens, double target, bool count) {
    uint32_t bits = 0;
    for (int bit = 30; bit >= 0; --bit) {
        const uint32_t candidate = bits | (1u << bit);
        float threshold;
        std::memcpy(&threshold, &candidate, sizeof threshold);
        if (threshold <= 1.0f && total_from(weights, num_tokens, threshold, count) >= target) bits = candidate;
    }
    float threshold;
    std::memcpy(&threshold, &bits, sizeof threshold);
    return threshold;
}

double keep_from(float* weights, int num_tokens, float threshold) {
    double total = 0;
    for (int start = 0; start < num_tokens; start += SPAN) {
        Vector partial{};
        for (int i = start; i < std::min(num_tokens, start + SPAN); i += LANES) {
            const Vector weight = load(weights + i);
            const Vector kept = weight >= threshold ? weight : Vector{};
            store(weights + i, kept);
            partial += kept;
        }
        total += sum(partial);
    }
    return total;
}

// The first token at which the running sum of weights passes `target`; the last kept one if rounding puts the
// target above the last sum.
int draw(const float* weights, int num_tokens, double target) {
    double before = 0;
    int span = 0;
    for (int start = 0; start < num_tokens; start += SPAN) {
        Vector partial{};
        for (int i = start; i < std::min(num_tokens, start + SPAN); i += LANES) partial += load(weights + i);
        const double after = before + sum(partial);
        if (after > before) span = start;
        if (after > target) break;
        before = after;
    }
    int last = span;
    for (int i = span; i < std::min(num_tokens, span + SPAN); ++i) {
        if (weights[i] == 0) continue;
        last = i;
        before += weights[i];
        if (before > target) break;
    }
    return last;
}

template <typename Element>
int find_top(const Element* logits, int num_tokens, float* top) {
    Vector best = broadcast(-std::numeric_limits<float>::infinity());
    int i = 0;
    for (; i + LANES <= num_tokens; i += LANES) best = larger(load(logits + i), best);
    *top = largest(best);
    for (; i < num_tokens; ++i) *top = std::max(*top, to_float(logits[i]));
    for (i = 0; i < num_tokens; ++i)
        if (to_float(logits[i]) == *top) return i;
    return 0;
}

struct Truncation {
    int top_k;
    float top_p, min_p;

    bool cuts(int num_tokens) const { return (top_k > 0 && top_k < num_tokens) || top_p < 1 || min_p > 0; }
};

// The largest weight is 1, so min_p is a threshold as it is.
double truncate(float* weights, int num_tokens, double total, Truncation by) {
    if (by.min_p > 0) total = keep_from(weights, num_tokens, by.min_p);
    if (by.top_k > 0 && by.top_k < num_tokens)
        total = keep_from(weights, num_tokens, find_threshold(weights, num_tokens, by.top_k, true));
    if (by.top_p < 1)
        total = keep_from(weights, num_tokens, find_threshold(weights, num_tokens, by.top_p * total, false));
    return total;
}

// `kept` is null where nobody asks which tokens could have been drawn.
template <typename Element>
void sample_row(const Element* logits, int num_tokens, float temperature, Truncation truncation, double uniform,
                float* weights, int32_t* token, float* log_prob, float* behaviour_log_prob, uint8_t* kept) {
    float top;
    const int best = find_top(logits, num_tokens, &top);
    const double raw_total = exponentiate(logits, num_tokens, top, 1.0f, weights);
    *token = best;
    *behaviour_log_prob = 0;
    if (temperature > 0) {
        double total = raw_total;
        if (temperature != 1.0f) total = exponentiate(logits, num_tokens, top, 1.0f / temperature, weights);
        total = truncate(weights, num_tokens, total, truncation);
        *token = draw(weights, num_tokens, uniform * total);
        *behaviour_log_prob = (float)log_probability(to_float(logits[*token]), top, 1.0f / temperature, total);
    }
    *log_prob = (float)log_probability(to_float(logits[*token]), top, 1.0f, raw_total);
    if (kept == nullptr) return;
    const bool cuts = truncation.cuts(num_tokens);
    for (int i = 0; i < num_tokens; ++i) {
        const bool possible = cuts ? weights[i] > 0 : to_float(logits[i]) > -std::numeric_limits<float>::infinity();
        kept[i] = temperature > 0 ? possible : i == best;
    }
}

template <typename Element>
void sample(const Element* logits, int num_tokens, int num_draws, const int32_t* logits_row, const float* temperature,
            const int32_t* top_k, const float* top_p, const float* min_p, const double* uniform, int32_t* token,
            float* log_prob, float* behaviour_log_prob, uint8_t* kept, int num_threads) {
#pragma omp parallel num_threads(num_threads) if (num_threads > 1 && num_draws > 1)
    {
        std::vector<float> weights(round_up(num_tokens), 0.0f);
#pragma omp for schedule(static)
        for (int b = 0; b < num_draws; ++b)
            sample_row(logits + (long)logits_row[b] * num_tokens, num_tokens, temperature[b],
                       Truncation{top_k[b], top_p[b], min_p[b]}, uniform[b], weights.data(), token + b, log_prob + b,
                       behaviour_log_prob + b, kept ? kept + (long)b * num_tokens : nullptr);
    }
}

// log_probs[r] = log-probability of token targets[r] under softmax(logits[r] / temperature), as a draw reports it.
void score(const float* logits, int num_tokens, int num_rows, const int64_t* targets, float temperature,
           float* log_probs, int num_threads) {
    const float inverse_temperature = 1.0f / temperature;
#pragma omp parallel num_threads(num_threads) if (num_threads > 1 && num_rows > 1)
    {
        std::vector<float> weights(round_up(num_tokens), 0.0f);
#pragma omp for schedule(static)
        for (int r = 0; r < num_rows; ++r) {
            const float* row = logits + (long)r * num_tokens;
            float top;
            find_top(row, num_tokens, &top);
            const double total = exponentiate(row, num_tokens, top, inverse_temperature, weights.data());
            log_probs[r] = (float)log_probability(row[targets[r]], top, inverse_temperature, total);
        }
    }
}

}  // namespace
}  // namespace rlserve

#pragma GCC visibility push(default)
extern "C" {

void score_float32(const float* logits, int num_tokens, int num_rows, const int64_t* targets, float temperature,
                   float* log_probs, int num_threads) {
    rlserve::score(logits, num_tokens, num_rows, targets, temperature, log_probs, num_threads);
}

void sample_float32(const float* logits, int num_tokens, int num_draws, const int32_t* logits_row,
                    const float* temperature, const int32_t* top_k, const float* top_p, const float* min_p,
                    const double* uniform, int32_t* token, float* log_prob, float* behaviour_log_prob, uint8_t* kept,
                    int num_threads) {
    rlserve::sample(logits, num_tokens, num_draws, logits_row, temperature, top_k, top_p, min_p, uniform, token,
                    log_prob, behaviour_log_prob, kept, num_threads);
}

void sample_bfloat16(const rlserve::bfloat16* logits, int num_tokens, int num_draws, const int32_t* logits_row,
                     const float* temperature, const int32_t* top_k, const float* top_p, const float* min_p,
                     const double* uniform, int32_t* token, float* log_prob, float* behaviour_log_prob, uint8_t* kept,
                     int num_threads) {
    rlserve::sample(logits, num_tokens, num_draws, logits_row, temperature, top_k, top_p, min_p, uniform, token,
                    log_prob, behaviour_log_prob, kept, num_threads);
}
}
