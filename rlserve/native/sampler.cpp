// Draws tokens by the inverse of the distribution function in vocabulary order. Nothing is sorted but a few candidates.
// Legend: R rows of logits, V vocabulary, B draws, W words of 32 bits that hold V bits.

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
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
    std::fill(weights + num_tokens, weights + round_up(num_tokens), 0.0f);
    return total;
}

// Of a token, where `total` is the sum of the weights of all that could be drawn.
double log_probability(float logit, float top, float inverse_temperature, double total) {
    return (logit - top) * inverse_temperature - std::log(total);
}

// Of the weights not below the threshold. They are padded with zeros.
double total_from(const float* weights, int num_weights, float threshold) {
    double total = 0;
    for (int start = 0; start < num_weights; start += SPAN) {
        Vector partial{};
        for (int i = start; i < std::min(num_weights, start + SPAN); i += LANES) {
            const Vector weight = load(weights + i);
            partial += weight >= threshold ? weight : Vector{};
        }
        total += sum(partial);
    }
    return total;
}

// The first place at which the running sum of the weights not below the threshold passes `target`; that of the last of
// them if rounding puts the target above the last sum.
int draw(const float* weights, int num_weights, float threshold, double target) {
    double before = 0;
    int span = 0;
    for (int start = 0; start < num_weights; start += SPAN) {
        const int count = std::min(num_weights - start, SPAN);
        const double after = before + total_from(weights + start, count, threshold);
        if (after > before) span = start;
        if (after > target) break;
        before = after;
    }
    int last = span;
    for (int i = span; i < std::min(num_weights, span + SPAN); ++i) {
        if (weights[i] == 0 || weights[i] < threshold) continue;
        last = i;
        before += weights[i];
        if (before > target) break;
    }
    return last;
}

template <typename Element>
float find_top(const Element* logits, int num_tokens) {
    Vector best = broadcast(-std::numeric_limits<float>::infinity());
    int i = 0;
    for (; i + LANES <= num_tokens; i += LANES) best = larger(load(logits + i), best);
    float top = largest(best);
    for (; i < num_tokens; ++i) top = std::max(top, to_float(logits[i]));
    return top;
}

template <typename Element>
int find_token(const Element* logits, int num_tokens, float logit) {
    for (int i = 0; i < num_tokens; ++i)
        if (to_float(logits[i]) == logit) return i;
    return 0;
}

struct Truncation {
    int top_k;
    float top_p, min_p;

    bool cuts(int num_tokens) const { return (top_k > 0 && top_k < num_tokens) || top_p < 1 || min_p > 0; }
};

// Work space of one thread, kept from draw to draw: fresh memory of this size costs more than a pass over it.
struct Scratch {
    std::vector<float> weights, chosen, rest, allowed;
    std::vector<int32_t> tokens;

    static Scratch& of_thread(int num_tokens) {
        thread_local Scratch scratch;
        const size_t size = round_up(num_tokens) + LANES;
        if (scratch.weights.size() < size) {
            scratch.weights.resize(size);
            scratch.chosen.resize(size);
            scratch.rest.resize(size);
            scratch.allowed.resize(size);
            scratch.tokens.resize(size);
        }
        return scratch;
    }
};

// Weights to draw from, in the order of the vocabulary: all of them, or the likeliest ones with their tokens.
struct Candidates {
    const float* weights;
    int count;
    const int32_t* tokens;  // or null, where the place is the token

    int token(int place) const { return tokens ? tokens[place] : place; }
};

// Some of the likeliest tokens, with the num_wanted likeliest among them, where there are as many spans: as many tokens
// are not below the smallest of the num_wanted largest maxima of spans. The other spans need not be looked through.
Candidates likeliest(const float* weights, int num_tokens, int num_wanted, Scratch& scratch) {
    std::vector<float> maxima;
    for (int start = 0; start < num_tokens; start += SPAN) {
        Vector best{};
        for (int i = start; i < std::min(num_tokens, start + SPAN); i += LANES) best = larger(load(weights + i), best);
        maxima.push_back(largest(best));
    }
    std::vector<float> ordered = maxima;
    std::nth_element(ordered.begin(), ordered.begin() + (num_wanted - 1), ordered.end(), std::greater<float>());
    const float bound = ordered[num_wanted - 1];
    int count = 0;
    for (int start = 0; start < num_tokens; start += SPAN) {
        if (maxima[start / SPAN] < bound) continue;
        for (int i = start; i < std::min(num_tokens, start + SPAN); ++i) {
            scratch.chosen[count] = weights[i];
            scratch.tokens[count] = i;
            count += weights[i] >= bound;
        }
    }
    std::fill_n(&scratch.chosen[count], LANES, 0.0f);
    return {scratch.chosen.data(), count, scratch.tokens.data()};
}

// The largest threshold at which the weights not below it, or their number, reach `target`; the smallest positive one
// if none does. Bits of positive floats are in the order of their values, so the place of the threshold among them
// is narrowed down: each pass tries many cuts at once, and leaves only the weights between two neighbouring ones. The
// first cuts of many weights are close to the threshold of a few spans of them: a guess that saves time if it is good.
template <bool COUNTS>
class ThresholdSearch {
public:
    // `total` is what many candidates reach together; of few it is not asked for.
    ThresholdSearch(const Candidates& candidates, double target, double total, std::vector<float>& scratch)
        : left_(candidates.weights), num_left_(candidates.count), target_(target), share_(target / total),
          scratch_(scratch.data()) {}

    float find() {
        if (num_left_ >= MANY)
            cut_around(guess());
        else
            narrow<NUM_CUTS>([](int j) { return (uint32_t)(127 - j) << 23; });  // powers of two
        while (high_ - low_ > 1 && num_left_ > FEW) {
            const uint64_t high = high_, range = high_ - low_;
            narrow<NUM_CUTS>([&](int j) { return (uint32_t)(high - (j + 1) * range / (NUM_CUTS + 1)); });
        }
        if (high_ - low_ > 1) {
            std::copy_n(left_, num_left_, scratch_);
            std::sort(scratch_, scratch_ + num_left_, std::greater<float>());
            for (int i = 0; i < num_left_; ++i) {
                above_ += COUNTS ? 1.0 : scratch_[i];
                if (above_ >= target_) return scratch_[i];
            }
        }
        return std::bit_cast<float>(low_);
    }

private:
    static constexpr int NUM_CUTS = LANES == 16 ? 16 : 8;
    static constexpr int FEW = 64, MANY = 1 << 14;
    static constexpr int SKIPPED = 16;  // spans from one of a sample to the next
    static constexpr int BLOCK = 2048;  // weights that are summed in float
    static constexpr int OCTAVE = 1 << 23;

    // The threshold of a sample.
    uint32_t guess() const {
        int count = 0;
        for (int start = 0; start + SPAN <= num_left_; start += SKIPPED * SPAN, count += SPAN)
            std::copy_n(left_ + start, SPAN, scratch_ + count);
        std::vector<float> rest(count + LANES);
        const double total = COUNTS ? count : total_from(scratch_, count, 0.0f);
        return std::bit_cast<uint32_t>(ThresholdSearch({scratch_, count, nullptr}, share_ * total, total, rest).find());
    }

    void cut_around(uint32_t guess) {
        constexpr int OFFSETS[] = {OCTAVE, OCTAVE / 16, -OCTAVE / 16, -OCTAVE};
        narrow<4>([&](int j) { return (uint32_t)std::clamp<int64_t>((int64_t)guess + OFFSETS[j], low_, high_ - 1); });
    }

    // One pass that measures what is not below each of the falling cuts, and one that keeps what lies between the last
    // that does not reach the target and the first that does.
    template <int NUM, typename CutAt>
    void narrow(CutAt cut_at) {
        uint32_t cuts[NUM];
        for (int j = 0; j < NUM; ++j) cuts[j] = cut_at(j);
        double reached[NUM] = {};
        measure(cuts, reached);
        double above = above_;
        for (int j = 0; j < NUM; ++j) {
            if (above_ + reached[j] >= target_) {
                low_ = cuts[j];
                break;
            }
            high_ = cuts[j];
            above = above_ + reached[j];
        }
        above_ = above;
        gather();
    }

    template <int NUM>
    void measure(const uint32_t (&cuts)[NUM], double (&reached)[NUM]) const {
        for (int start = 0; start < num_left_; start += BLOCK) {
            Vector sums[NUM] = {};
            for (int i = start; i < std::min(num_left_, start + BLOCK); i += LANES) {
                const Vector weight = load(left_ + i), share = COUNTS ? broadcast(1.0f) : weight;
                for (int j = 0; j < NUM; ++j) sums[j] += weight >= std::bit_cast<float>(cuts[j]) ? share : Vector{};
            }
            for (int j = 0; j < NUM; ++j) reached[j] += sum(sums[j]);
        }
    }

    void gather() {
        const float low = std::bit_cast<float>(low_), high = std::bit_cast<float>(high_);
        int count = 0;
        for (int i = 0; i < num_left_; i += LANES) {
            const Vector weight = load(left_ + i);
            count += compress(scratch_ + count, weight, (weight >= low) & (weight < high));
        }
        std::fill_n(scratch_ + count, LANES, 0.0f);
        left_ = scratch_;
        num_left_ = count;
    }

    const float* left_;  // what may be the threshold, padded with zeros
    int num_left_;
    const double target_, share_;
    float* const scratch_;
    // The threshold is in [low, high), as bits; `above` is the measure of what is not below `high`.
    uint32_t low_ = 1, high_ = std::bit_cast<uint32_t>(1.0f) + 1;
    double above_ = 0;
};

// What a draw is made from.
struct Support {
    Candidates candidates;
    float threshold;
    double total;  // of the candidates not below the threshold
};

// Every rule is a threshold, and the largest one decides: the largest weight is 1, so min_p is one as it is.
Support truncate(const float* weights, int num_tokens, double total, Truncation by, Scratch& scratch) {
    Support kept{{weights, num_tokens, nullptr}, by.min_p, total};
    const auto add_up = [&] {
        kept.total = total_from(kept.candidates.weights, kept.candidates.count, kept.threshold);
    };
    if (by.min_p > 0) add_up();
    if (by.top_k > 0 && by.top_k < num_tokens) {
        if (by.top_k <= num_tokens / SPAN) kept.candidates = likeliest(weights, num_tokens, by.top_k, scratch);
        const float last = ThresholdSearch<true>(kept.candidates, by.top_k, kept.candidates.count, scratch.rest).find();
        kept.threshold = std::max(kept.threshold, last);
        add_up();
    }
    if (by.top_p < 1) {
        const float last = ThresholdSearch<false>(kept.candidates, by.top_p * kept.total, total, scratch.rest).find();
        kept.threshold = std::max(kept.threshold, last);
        add_up();
    }
    return kept;
}

// The logits of the tokens whose bits are set, lowest first, and minus infinity for the others; returns the largest.
template <typename Element>
float keep_allowed(const Element* logits, int num_tokens, const uint32_t* allowed, float* to) {
    const Vector forbidden = broadcast(-std::numeric_limits<float>::infinity());
    Vector best = forbidden;
    int i = 0;
    for (; i + LANES <= num_tokens; i += LANES) {  // without a branch, which nobody could predict
        const IntVector bits = IntVector{} + (int32_t)(allowed[i / 32] >> i % 32);
        const Vector kept = (bits >> COUNTING & 1) != 0 ? load(logits + i) : forbidden;
        store(to + i, kept);
        best = larger(kept, best);
    }
    float top = largest(best);
    for (; i < num_tokens; ++i) {
        to[i] = allowed[i / 32] >> i % 32 & 1 ? to_float(logits[i]) : -std::numeric_limits<float>::infinity();
        top = std::max(top, to[i]);
    }
    return top;
}

// `weights` are those of temperature 1, `total` their sum. `kept` is null where nobody asks which tokens could have been
// drawn.
template <typename Element>
void draw_from(const Element* logits, int num_tokens, float top, double total, float temperature, Truncation truncation,
               double uniform, Scratch& scratch, int32_t* token, float* behaviour_log_prob, uint8_t* kept) {
    float* weights = scratch.weights.data();
    const bool is_greedy = !(temperature > 0);
    float threshold = 0;
    if (is_greedy) {
        *token = find_token(logits, num_tokens, top);
        *behaviour_log_prob = 0;
    } else {
        if (temperature != 1.0f) total = exponentiate(logits, num_tokens, top, 1.0f / temperature, weights);
        const Support support = truncate(weights, num_tokens, total, truncation, scratch);
        const Candidates& from = support.candidates;
        *token = from.token(draw(from.weights, from.count, support.threshold, uniform * support.total));
        *behaviour_log_prob = (float)log_probability(to_float(logits[*token]), top, 1.0f / temperature, support.total);
        threshold = support.threshold;
    }
    if (kept == nullptr) return;
    const bool cuts = truncation.cuts(num_tokens);
    for (int i = 0; i < num_tokens; ++i) {
        const bool possible = cuts ? weights[i] > 0 && weights[i] >= threshold
                                   : to_float(logits[i]) > -std::numeric_limits<float>::infinity();
        kept[i] = is_greedy ? i == *token : possible;
    }
}

// `allowed` is null where all tokens are.
template <typename Element>
void sample_row(const Element* logits, int num_tokens, const uint32_t* allowed, float temperature,
                Truncation truncation, double uniform, int32_t* token, float* log_prob, float* behaviour_log_prob,
                uint8_t* kept) {
    Scratch& scratch = Scratch::of_thread(num_tokens);
    float* weights = scratch.weights.data();
    const float top = find_top(logits, num_tokens);
    const double raw_total = exponentiate(logits, num_tokens, top, 1.0f, weights);
    if (allowed == nullptr) {
        draw_from(logits, num_tokens, top, raw_total, temperature, truncation, uniform, scratch, token,
                  behaviour_log_prob, kept);
    } else {
        float* from = scratch.allowed.data();
        const float top_allowed = keep_allowed(logits, num_tokens, allowed, from);
        const double total = exponentiate(from, num_tokens, top_allowed, 1.0f, weights);
        draw_from((const float*)from, num_tokens, top_allowed, total, temperature, truncation, uniform, scratch, token,
                  behaviour_log_prob, kept);
    }
    *log_prob = (float)log_probability(to_float(logits[*token]), top, 1.0f, raw_total);
}

template <typename Element>
void sample(const Element* logits, int num_tokens, int num_draws, const int32_t* logits_row, const float* temperature,
            const int32_t* top_k, const float* top_p, const float* min_p, const double* uniform,
            const uint32_t* allowed, int num_words, int32_t* token, float* log_prob, float* behaviour_log_prob,
            uint8_t* kept, int num_threads) {
#pragma omp parallel num_threads(num_threads) if (num_threads > 1 && num_draws > 1)
    {
#pragma omp for schedule(static)
        for (int b = 0; b < num_draws; ++b)
            sample_row(logits + (long)logits_row[b] * num_tokens, num_tokens,
                       allowed ? allowed + (long)b * num_words : nullptr, temperature[b],
                       Truncation{top_k[b], top_p[b], min_p[b]}, uniform[b], token + b, log_prob + b,
                       behaviour_log_prob + b, kept ? kept + (long)b * num_tokens : nullptr);
    }
}

// log_probs[r] = log-probability of token targets[r] under softmax(logits[r] / temperature), as a draw reports it.
void score(const float* logits, int num_tokens, int num_rows, const int64_t* targets, float temperature,
           float* log_probs, int num_threads) {
    const float inverse_temperature = 1.0f / temperature;
#pragma omp parallel num_threads(num_threads) if (num_threads > 1 && num_rows > 1)
    {
#pragma omp for schedule(static)
        for (int r = 0; r < num_rows; ++r) {
            const float* row = logits + (long)r * num_tokens;
            float* weights = Scratch::of_thread(num_tokens).weights.data();
            const float top = find_top(row, num_tokens);
            const double total = exponentiate(row, num_tokens, top, inverse_temperature, weights);
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
                    const double* uniform, const uint32_t* allowed, int num_words, int32_t* token, float* log_prob,
                    float* behaviour_log_prob, uint8_t* kept, int num_threads) {
    rlserve::sample(logits, num_tokens, num_draws, logits_row, temperature, top_k, top_p, min_p, uniform, allowed,
                    num_words, token, log_prob, behaviour_log_prob, kept, num_threads);
}

void sample_bfloat16(const rlserve::bfloat16* logits, int num_tokens, int num_draws, const int32_t* logits_row,
                     const float* temperature, const int32_t* top_k, const float* top_p, const float* min_p,
                     const double* uniform, const uint32_t* allowed, int num_words, int32_t* token, float* log_prob,
                     float* behaviour_log_prob, uint8_t* kept, int num_threads) {
    rlserve::sample(logits, num_tokens, num_draws, logits_row, temperature, top_k, top_p, min_p, uniform, allowed,
                    num_words, token, log_prob, behaviour_log_prob, kept, num_threads);
}
}
