// A position-sensitive sum over the bits of a tensor, modulo 2^64: see fingerprint.py of the engine, which defines it.

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "team.h"

namespace rlserve {
namespace {

constexpr long PART = 1 << 16;  // elements of a task

// The sum of bits(i) * (2 i + 1) over all elements, their bits being taken as integers with a sign.
template <typename Bits>
uint64_t weighted_sum(const Bits* bits, long size, int num_threads) {
    std::atomic<uint64_t> total{0};
    const int num_parts = (int)((size + PART - 1) / PART);
    run_team(std::min(num_threads, std::max(1, num_parts)), [&](Team& team) {
        team.share(num_parts, 1, [&](int part) {
            const long first = part * PART, end = std::min(size, first + PART);
            uint64_t sum = 0;
            for (long i = first; i < end; ++i) sum += (uint64_t)(int64_t)bits[i] * (uint64_t)(2 * i + 1);
            total.fetch_add(sum, std::memory_order_relaxed);
        });
    });
    return total;
}

}  // namespace
}  // namespace rlserve

#pragma GCC visibility push(default)
extern "C" {

uint64_t weighted_sum_int16(const int16_t* bits, int64_t size, int num_threads) {
    return rlserve::weighted_sum(bits, size, num_threads);
}

uint64_t weighted_sum_int32(const int32_t* bits, int64_t size, int num_threads) {
    return rlserve::weighted_sum(bits, size, num_threads);
}
}
