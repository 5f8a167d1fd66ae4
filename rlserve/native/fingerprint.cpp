// Sums of tensors, and copies that are summed up on their way.

#include <vector>

#include "team.h"
#include "vector.h"
#include "weighted_sum.h"

namespace rlserve {
namespace {

constexpr long PART = 1 << 16;  // elements of a task
constexpr int CHUNK = SUM_BLOCK * 2;  // elements between memory and memory: they stay in the first cache
constexpr long LINE = 64;       // bytes that are written past the cache at once

int num_parts(long size) { return (int)((size + PART - 1) / PART); }

template <typename Bits>
uint64_t sum_of(const Bits* bits, long size, int num_threads) {
    uint64_t total = 0;
    run_team(std::min(num_threads, std::max(1, num_parts(size))), [&](Team& team) {
        team.share(num_parts(size), 1, [&](int part) {
            const long first = part * PART;
            add_to(total, weighted_sum(bits + first, std::min(PART, size - first), first));
        });
    });
    return total;
}

// One tensor. Mirrored by _Copy in copying.py.
struct Copy {
    const void* from;
    void* to;  // on a whole line
    int64_t size;
    uint64_t sum;  // of what is written
};

// To bfloat16, to nearest, ties to even, as PyTorch rounds. Any NaN becomes one.
inline uint16_t rounded(uint32_t bits) {
    const uint32_t nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : nearest);
}

void round_all(const uint32_t* from, int count, int16_t* to) {
    int i = 0;
#ifdef __AVX512BF16__
    // One instruction rounds two vectors; but it flushes subnormals to zero, so whatever has any goes the long way.
    constexpr int SUBNORMAL_OR_NAN = 0x20 | 0x01 | 0x80;
    __mmask16 odd = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        const __m512 low = _mm512_loadu_ps(from + i), high = _mm512_loadu_ps(from + i + LANES);
        odd |= _mm512_fpclass_ps_mask(low, SUBNORMAL_OR_NAN) | _mm512_fpclass_ps_mask(high, SUBNORMAL_OR_NAN);
        const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
        std::memcpy(to + i, &both, sizeof both);
    }
    if (odd) i = 0;
#endif
#pragma omp simd  // of integers
    for (int j = i; j < count; ++j) to[j] = (int16_t)rounded(from[j]);
}

// Past the cache, which saves reading first what is overwritten.
void write_lines(void* to, const void* from, long num_bytes) {
    const long whole = num_bytes / (long)sizeof(IntVector) * (long)sizeof(IntVector);
    for (long i = 0; i < whole; i += (long)sizeof(IntVector)) {
        IntVector line;
        std::memcpy(&line, static_cast<const char*>(from) + i, sizeof line);
        stream(static_cast<char*>(to) + i, line);
    }
    std::memcpy(static_cast<char*>(to) + whole, static_cast<const char*>(from) + whole, num_bytes - whole);
}

uint64_t copy_chunk(const int32_t* from, int32_t* to, int count, long first) {
    const uint64_t sum = weighted_sum(from, count, first);
    write_lines(to, from, count * (long)sizeof *to);
    return sum;
}

uint64_t copy_chunk(const int16_t* from, int16_t* to, int count, long first) {
    const uint64_t sum = weighted_sum(from, count, first);
    write_lines(to, from, count * (long)sizeof *to);
    return sum;
}

uint64_t copy_chunk(const uint32_t* from, int16_t* to, int count, long first) {
    alignas(LINE) int16_t narrow[CHUNK];
    round_all(from, count, narrow);
    return copy_chunk(narrow, to, count, first);
}

template <typename From, typename To>
void copy_all(Copy* copies, int num, int num_threads) {
    std::vector<int> ends(num);
    for (int i = 0; i < num; ++i) ends[i] = (i ? ends[i - 1] : 0) + num_parts(copies[i].size);
    const int num_tasks = num ? ends.back() : 0;
    run_team(std::min(num_threads, std::max(1, num_tasks)), [&](Team& team) {
        team.share(num_tasks, 1, [&](int task) {
            const int i = (int)(std::upper_bound(ends.begin(), ends.end(), task) - ends.begin());
            Copy& copy = copies[i];
            const From* from = static_cast<const From*>(copy.from);
            To* to = static_cast<To*>(copy.to);
            const long start = (task - (i ? ends[i - 1] : 0)) * PART, end = std::min(copy.size, start + PART);
            uint64_t sum = 0;
            for (long first = start; first < end; first += CHUNK)
                sum += copy_chunk(from + first, to + first, (int)std::min((long)CHUNK, end - first), first);
            add_to(copy.sum, sum);
            end_streams();
        });
    });
}

}  // namespace
}  // namespace rlserve

#pragma GCC visibility push(default)
extern "C" {

uint64_t weighted_sum_int16(const int16_t* bits, int64_t size, int num_threads) {
    return rlserve::sum_of(bits, size, num_threads);
}

uint64_t weighted_sum_int32(const int32_t* bits, int64_t size, int num_threads) {
    return rlserve::sum_of(bits, size, num_threads);
}

void copy_float32(rlserve::Copy* copies, int num, int num_threads) {
    rlserve::copy_all<int32_t, int32_t>(copies, num, num_threads);
}

void copy_bfloat16(rlserve::Copy* copies, int num, int num_threads) {
    rlserve::copy_all<int16_t, int16_t>(copies, num, num_threads);
}

void round_bfloat16(rlserve::Copy* copies, int num, int num_threads) {
    rlserve::copy_all<uint32_t, int16_t>(copies, num, num_threads);
}
}
