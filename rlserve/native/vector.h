// Sixteen floats at a time, in the compiler's own vector type: it becomes AVX-512, AVX2 or NEON as there is.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace rlserve {

constexpr int LANES = 16;

typedef float Vector __attribute__((vector_size(64)));
typedef int32_t IntVector __attribute__((vector_size(64)));
typedef uint32_t BitVector __attribute__((vector_size(64)));
typedef uint16_t HalfVector __attribute__((vector_size(32)));
typedef int8_t ByteVector __attribute__((vector_size(16)));

// The upper half of a float's bits.
struct bfloat16 {
    uint16_t bits;
};

constexpr IntVector COUNTING = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// The numbers at the given places of both vectors, one behind the other.
inline IntVector shuffle(IntVector first, IntVector second, IntVector places) {
#ifdef __AVX512F__
    return (IntVector)_mm512_permutex2var_epi32((__m512i)first, (__m512i)places, (__m512i)second);
#else
    IntVector chosen;
    for (int i = 0; i < LANES; ++i) chosen[i] = places[i] < LANES ? first[places[i]] : second[places[i] - LANES];
    return chosen;
#endif
}

// Writes a vector to its whole 64 bytes of memory past the cache, to be seen by other threads after end_streams.
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

inline int round_up(int value) { return (value + LANES - 1) / LANES * LANES; }

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

typedef float HalfOfVector __attribute__((vector_size(32)));
typedef float QuarterOfVector __attribute__((vector_size(16)));

// The two halves of a vector, to be folded onto each other.
template <typename Wide, typename Narrow>
inline void halve(const Wide& vector, Narrow* low, Narrow* high) {
    std::memcpy(low, &vector, sizeof *low);
    std::memcpy(high, reinterpret_cast<const char*>(&vector) + sizeof *low, sizeof *high);
}

inline float sum(Vector vector) {
    HalfOfVector a, b;
    halve(vector, &a, &b);
    QuarterOfVector c, d;
    halve(HalfOfVector(a + b), &c, &d);
    c += d;
    return (c[0] + c[2]) + (c[1] + c[3]);
}

inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

inline float largest(Vector vector) {
    HalfOfVector a, b;
    halve(vector, &a, &b);
    QuarterOfVector c, d;
    halve(HalfOfVector(a > b ? a : b), &c, &d);
    c = c > d ? c : d;
    const float even = c[0] > c[2] ? c[0] : c[2], odd = c[1] > c[3] ? c[1] : c[3];
    return even > odd ? even : odd;
}

// e to the x by range reduction and a polynomial (Cephes, expf), within 2 units in the last place.
// 0 below -87, where floats become subnormal; NaN stays NaN.
inline Vector exponential(Vector x) {
    const Vector original = x;
    x = x > 88.0f ? broadcast(88.0f) : x;
    x = x < -87.0f ? broadcast(-87.0f) : x;
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
    const IntVector exponent = ((IntVector)shifted - 0x4b400000) << 23;
    const Vector result = (Vector)((IntVector)p + exponent);
    return original < -87.0f ? Vector{} : result;
}

// Within 2e-7, absolute; NaN stays NaN.
inline Vector hyperbolic_tangent(Vector x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

// What products are made of. Along the dimension that is summed over, memory holds UNIT neighbours side by side, so
// that one instruction multiplies and adds all of them: two of bfloat16 where the processor can, and the same layout
// elsewhere. A sum always runs in order of that dimension, so it does not depend on how much is computed with it.
template <typename Stored>
struct Products {  // float, and int8 that is multiplied by float
    static constexpr int UNIT = 1;
    typedef float Factor;  // what the other side holds
    typedef Vector Units;
    typedef float Scalar;

    template <typename From>
    static Units units(const From* from) {
        return load(from);
    }
    static Scalar scalar(const Factor* from) { return *from; }
    static Vector multiply_add(Vector sum, Units units, Scalar scalar) { return sum + units * scalar; }
};

template <>
struct Products<bfloat16> {
    static constexpr int UNIT = 2;
    typedef bfloat16 Factor;
    typedef BitVector Units;
    typedef uint32_t Scalar;

    static Units units(const bfloat16* from) {
        BitVector pairs;
        std::memcpy(&pairs, from, sizeof pairs);
        return pairs;
    }
    static Units units(const int8_t* from) {  // which bfloat16 holds exactly
        bfloat16 pairs[2 * LANES];
#ifdef __AVX512BF16__
        const __m512bh both = _mm512_cvtne2ps_pbh((__m512)load(from + LANES), (__m512)load(from));
        std::memcpy(pairs, &both, sizeof both);
#else
        store(pairs, load(from));
        store(pairs + LANES, load(from + LANES));
#endif
        return units(pairs);
    }
    static Scalar scalar(const bfloat16* from) {
        uint32_t pair;
        std::memcpy(&pair, from, sizeof pair);
        return pair;
    }
    static Vector multiply_add(Vector sum, Units units, Scalar scalar) {
#ifdef __AVX512BF16__
        return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)units, (__m512bh)_mm512_set1_epi32((int)scalar));
#else
        const BitVector factors = BitVector{} + scalar;
        sum += (Vector)(units << 16) * (Vector)(factors << 16);
        return sum + (Vector)(units & 0xffff0000u) * (Vector)(factors & 0xffff0000u);
#endif
    }
};

// Only the first neighbour of each unit.
inline Vector first_of_units(Vector units) { return units; }
inline BitVector first_of_units(BitVector units) { return units & 0xffffu; }

}  // namespace rlserve
