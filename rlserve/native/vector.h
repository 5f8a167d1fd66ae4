// As many floats at a time as a register holds, in the compiler's own vector type: AVX-512, AVX2, or what else there is.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace rlserve {

// Never more than a register: the compiler keeps wider vectors in memory.
#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t IntVector __attribute__((vector_size(4 * LANES)));
typedef uint32_t BitVector __attribute__((vector_size(4 * LANES)));
typedef uint16_t HalfVector __attribute__((vector_size(2 * LANES)));
typedef int16_t PairVector __attribute__((vector_size(2 * LANES)));
typedef int8_t ByteVector __attribute__((vector_size(LANES)));

// The upper half of a float's bits.
struct bfloat16 {
    uint16_t bits;
};

#if defined(__AVX512F__)
constexpr IntVector COUNTING = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif defined(__AVX2__)
constexpr IntVector COUNTING = {0, 1, 2, 3, 4, 5, 6, 7};
#else
constexpr IntVector COUNTING = {0, 1, 2, 3};
#endif

// The numbers at the given places of both vectors, one behind the other.
inline IntVector shuffle(IntVector first, IntVector second, IntVector places) {
#ifdef __AVX512F__
    return (IntVector)_mm512_permutex2var_epi32((__m512i)first, (__m512i)places, (__m512i)second);
#elif !defined(__clang__)
    return __builtin_shuffle(first, second, places);
#else
    IntVector chosen;
    for (int i = 0; i < LANES; ++i) chosen[i] = places[i] < LANES ? first[places[i]] : second[places[i] - LANES];
    return chosen;
#endif
}

// Swaps the bit BIT of the row with that of the column, for two rows that differ in that bit.
template <int BIT>
inline void exchange(IntVector& low, IntVector& high) {
    const IntVector from_low = COUNTING & BIT ? COUNTING + (LANES - BIT) : COUNTING;
    const IntVector from_high = COUNTING & BIT ? COUNTING + LANES : COUNTING + BIT;
    const IntVector both = shuffle(low, high, from_low);
    high = shuffle(low, high, from_high);
    low = both;
}

template <int BIT>
inline void exchange_all(IntVector (&rows)[LANES]) {
    for (int r = 0; r < LANES; ++r)
        if (!(r & BIT)) exchange<BIT>(rows[r], rows[r + BIT]);
}

// Rows become columns.
inline void transpose(IntVector (&rows)[LANES]) {
    exchange_all<1>(rows);
    exchange_all<2>(rows);
    if constexpr (LANES > 4) exchange_all<4>(rows);
    if constexpr (LANES > 8) exchange_all<8>(rows);
}

// Writes a vector to memory: past the cache where it fills a line of it, to be seen by others after end_streams.
inline void stream(void* to, IntVector vector) {
#ifdef __AVX512F__
    _mm512_stream_si512(static_cast<__m512i*>(to), (__m512i)vector);
#else
    std::memcpy(to, &vector, sizeof vector);
#endif
}

inline void end_streams() {
#ifdef __AVX512F__
    _mm_sfence();
#endif
}

// To whole vectors of any machine. Mirrored by round_up in attention.py.
inline int round_up(int value) { return (value + 15) / 16 * 16; }

inline Vector broadcast(float value) { return Vector{} + value; }

inline Vector load(const float* from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

inline Vector load(const bfloat16* from) {
    HalfVector half;
    std::memcpy(&half, from, sizeof half);
    return (Vector)(__builtin_convertvector(half, BitVector) << 16);
}

inline Vector load(const int8_t* from) {
#ifdef __AVX512F__  // which the compiler does not find by itself
    return (Vector)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
    ByteVector bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(__builtin_convertvector(bytes, IntVector), Vector);
#endif
}

inline void store(float* to, Vector vector) { std::memcpy(to, &vector, sizeof vector); }

// Rounds to nearest, ties to even.
inline void store(bfloat16* to, Vector vector) {
#ifdef __AVX512BF16__
    const __m256bh half = _mm512_cvtneps_pbh((__m512)vector);
    std::memcpy(to, &half, sizeof half);
#else
    BitVector bits = (BitVector)vector;
    bits += 0x7fff + ((bits >> 16) & 1);
    HalfVector half = __builtin_convertvector(bits >> 16, HalfVector);
    std::memcpy(to, &half, sizeof half);
#endif
}

// Writes the numbers where the mask is set one behind the other, and returns how many. What is behind them, up to a
// whole vector, may be overwritten.
inline int compress(float* to, Vector vector, IntVector mask) {
#ifdef __AVX512F__
    const __mmask16 bits = _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
    store(to, (Vector)_mm512_maskz_compress_ps(bits, (__m512)vector));
    return __builtin_popcount(bits);
#else
#ifdef __AVX2__
    if (_mm256_testz_si256((__m256i)mask, (__m256i)mask)) return 0;
#endif
    int count = 0;
    for (int i = 0; i < LANES; ++i) {
        to[count] = vector[i];
        count -= mask[i];
    }
    return count;
#endif
}

inline float to_float(float value) { return value; }

inline float to_float(bfloat16 value) {
    uint32_t bits = (uint32_t)value.bits << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline void assign(float& to, float value) { to = value; }

inline void assign(bfloat16& to, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    to.bits = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// to [size] = from [size] * factor.
template <typename To>
inline void scale_to(const float* from, float factor, long size, To* to) {
    long i = 0;
    for (; i + LANES <= size; i += LANES) store(to + i, load(from + i) * factor);
    for (; i < size; ++i) assign(to[i], from[i] * factor);
}

// to [size] = from [size].
template <typename From, typename To>
inline void convert(const From* from, long size, To* to) {
    if constexpr (std::is_same_v<From, To>) {
        std::memcpy(to, from, size * sizeof(To));
    } else {
        long i = 0;
        for (; i + LANES <= size; i += LANES) store(to + i, load(from + i));
        for (; i < size; ++i) assign(to[i], to_float(from[i]));
    }
}

// The lanes folded in half, and again, until one is left.
template <typename Fold>
inline float fold(Vector vector, Fold combine) {
    for (int width = LANES / 2; width > 0; width /= 2)
        vector = combine(vector, (Vector)shuffle((IntVector)vector, (IntVector)vector, COUNTING ^ width));
    return vector[0];
}

inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

inline float sum(Vector vector) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)vector);  // in the same order
#else
    return fold(vector, [](Vector a, Vector b) { return a + b; });
#endif
}

inline float largest(Vector vector) {
#ifdef __AVX512F__
    return _mm512_reduce_max_ps((__m512)vector);
#else
    return fold(vector, larger);
#endif
}

// e to the x by range reduction and a polynomial (Cephes, expf), within 2 units in the last place.
// 0 below -87, where floats become subnormal; NaN stays NaN.
inline Vector exponential(Vector x) {
    const Vector original = x;
#ifdef __AVX512F__
    x = (Vector)_mm512_min_ps((__m512)broadcast(88.0f), (__m512)x);  // of NaN the second
#else
    x = x > 88.0f ? broadcast(88.0f) : x;
    x = x < -87.0f ? broadcast(-87.0f) : x;
#endif
    const float magic = 12582912.0f;  // adding 1.5 * 2^23 leaves the rounded integer in the low bits
    const Vector shifted = x * 1.44269504088896341f + magic;
    const Vector power = shifted - magic;
    const Vector r = x - power * 0.693359375f + power * 2.12194440e-4f;
    Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
#ifdef __AVX512F__
    const __mmask16 is_normal = _mm512_cmp_ps_mask((__m512)original, (__m512)broadcast(-87.0f), _CMP_NLT_UQ);
    return (Vector)_mm512_maskz_scalef_ps(is_normal, (__m512)p, (__m512)power);
#else
    const IntVector exponent = ((IntVector)shifted - 0x4b400000) << 23;
    const Vector result = (Vector)((IntVector)p + exponent);
    return original < -87.0f ? Vector{} : result;
#endif
}

// Within 2e-7, absolute; NaN stays NaN.
inline Vector hyperbolic_tangent(Vector x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

// What products are made of. Along the dimension that is summed over, memory holds UNIT neighbours side by side: two of
// bfloat16. Where the processor can, one instruction multiplies and adds both; elsewhere each of the PARTS of a unit is
// widened to float, and its factors on the other side are kept as float from the start. A sum always runs in order of
// that dimension, so it does not depend on how much is computed with it.
template <typename Stored>
struct Products {  // float, and int8 that is multiplied by float
    static constexpr int UNIT = 1, PARTS = 1;
    typedef float Factor;  // what the other side holds
    typedef Vector Units;
    typedef float Scalar;

    template <typename From>
    static Units units(const From* from) {
        return load(from);
    }
    static Vector part(Units units, int) { return units; }
    static Scalar scalar(const Factor* from, int) { return *from; }
    static Vector multiply_add(Vector sum, Vector part, Scalar scalar) { return sum + part * scalar; }
};

#ifdef __AVX512BF16__
template <>
struct Products<bfloat16> {
    static constexpr int UNIT = 2, PARTS = 1;
    typedef bfloat16 Factor;
    typedef BitVector Units;
    typedef uint32_t Scalar;

    static Units units(const bfloat16* from) {
        BitVector pairs;
        std::memcpy(&pairs, from, sizeof pairs);
        return pairs;
    }
    static Units units(const int8_t* from) {  // which bfloat16 holds exactly
        return (BitVector)_mm512_cvtne2ps_pbh((__m512)load(from + LANES), (__m512)load(from));
    }
    static Units part(Units units, int) { return units; }
    static Scalar scalar(const bfloat16* from, int) {
        uint32_t pair;
        std::memcpy(&pair, from, sizeof pair);
        return pair;
    }
    static Vector multiply_add(Vector sum, Units part, Scalar scalar) {
        return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)part, (__m512bh)_mm512_set1_epi32((int)scalar));
    }
};
#else
template <>
struct Products<bfloat16> {
    static constexpr int UNIT = 2, PARTS = 2;
    typedef float Factor;
    typedef BitVector Units;
    typedef float Scalar;

    static Units units(const bfloat16* from) {
        BitVector pairs;
        std::memcpy(&pairs, from, sizeof pairs);
        return pairs;
    }
    static IntVector units(const int8_t* from) {
        PairVector pairs;
        std::memcpy(&pairs, from, sizeof pairs);
        return __builtin_convertvector(pairs, IntVector);
    }
    static Vector part(Units units, int part) { return (Vector)(part ? units & 0xffff0000u : units << 16); }
    static Vector part(IntVector units, int part) {
        return __builtin_convertvector(part ? units >> 8 : units << 24 >> 24, Vector);
    }
    static Scalar scalar(const float* from, int part) { return from[part]; }
    static Vector multiply_add(Vector sum, Vector part, Scalar scalar) { return sum + part * scalar; }
};
#endif

// Only the first neighbour of each unit.
inline Vector first_of_units(Vector units) { return units; }
inline BitVector first_of_units(BitVector units) { return units & 0xffffu; }

}  // namespace rlserve
