// The position-sensitive sum over the bits of a tensor that fingerprint.py of the engine defines, modulo 2^64: of
// bits(i) * (2 i + 1), the bits being taken as integers with a sign. Sums of parts add up.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace rlserve {

constexpr int SUM_BLOCK = 256;  // elements whose products with their places in it add up to less than 2^31 for int16

template <typename Bits>
struct BlockSum {
    typedef int64_t Sum;
};
template <>
struct BlockSum<int16_t> {
    typedef int32_t Sum;  // products of neighbours are added by one instruction
};

constexpr std::array<int16_t, SUM_BLOCK> places_in_block() {
    std::array<int16_t, SUM_BLOCK> places{};
    for (int i = 0; i < SUM_BLOCK; ++i) places[i] = (int16_t)i;
    return places;
}
inline constexpr std::array<int16_t, SUM_BLOCK> PLACES = places_in_block();

// Of `count` elements, up to a block, which are those of the tensor from `first` on.
template <typename Bits>
inline uint64_t block_sum(const Bits* bits, int count, long first) {
    typedef typename BlockSum<Bits>::Sum Sum;
    Sum plain = 0, by_place = 0;
#pragma omp simd reduction(+ : plain, by_place)  // exact in any order
    for (int i = 0; i < count; ++i) {
        plain += bits[i];
        by_place += (Sum)bits[i] * (Sum)PLACES[i];
    }
    return (uint64_t)(int64_t)plain * (2 * (uint64_t)first + 1) + 2 * (uint64_t)(int64_t)by_place;
}

// Of `size` elements, which are those of the tensor from `first` on.
template <typename Bits>
inline uint64_t weighted_sum(const Bits* bits, long size, long first) {
    uint64_t total = 0;
    long i = 0;
    for (; i + SUM_BLOCK <= size; i += SUM_BLOCK) total += block_sum(bits + i, SUM_BLOCK, first + i);
    return i < size ? total + block_sum(bits + i, (int)(size - i), first + i) : total;
}

inline void add_to(uint64_t& total, uint64_t part) { __atomic_fetch_add(&total, part, __ATOMIC_RELAXED); }

}  // namespace rlserve
