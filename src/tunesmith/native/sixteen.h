// Sixteen floats at a time, in as many registers as the processor needs for them.
#pragma once

#include "native.h"

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int PARTS = 16 / LANES;

typedef float PartF __attribute__((vector_size(4 * LANES)));
typedef int32_t PartI __attribute__((vector_size(4 * LANES)));
typedef uint32_t PartU __attribute__((vector_size(4 * LANES)));
typedef uint16_t PartH __attribute__((vector_size(2 * LANES)));

template <typename Vector> INLINE Vector load(const void *from) {
    Vector values;
    std::memcpy(&values, from, sizeof values);
    return values;
}
template <typename Vector> INLINE void store(void *to, Vector values) { std::memcpy(to, &values, sizeof values); }

struct f32x16 {
    PartF part[PARTS];
};

// f(part of x, part of y) of each part.
template <typename Function> INLINE f32x16 by_part(f32x16 x, f32x16 y, const Function &f) {
    f32x16 result;
#pragma GCC unroll 4
    for (int i = 0; i < PARTS; ++i) result.part[i] = f(x.part[i], y.part[i], i);
    return result;
}

INLINE f32x16 splat(float x) {
    f32x16 result;
#pragma GCC unroll 4
    for (int i = 0; i < PARTS; ++i) result.part[i] = x - PartF{};
    return result;
}

INLINE f32x16 operator+(f32x16 x, f32x16 y) { return by_part(x, y, [](PartF a, PartF b, int) { return a + b; }); }
INLINE f32x16 operator-(f32x16 x, f32x16 y) { return by_part(x, y, [](PartF a, PartF b, int) { return a - b; }); }
INLINE f32x16 operator*(f32x16 x, f32x16 y) { return by_part(x, y, [](PartF a, PartF b, int) { return a * b; }); }
INLINE f32x16 operator+(f32x16 x, float y) { return x + splat(y); }
INLINE f32x16 operator-(f32x16 x, float y) { return x - splat(y); }
INLINE f32x16 operator*(f32x16 x, float y) { return x * splat(y); }
INLINE f32x16 &operator+=(f32x16 &x, f32x16 y) { return x = x + y; }

// The larger of each pair; x where one of them is NaN.
INLINE f32x16 larger(f32x16 x, f32x16 y) {
    return by_part(x, y, [](PartF a, PartF b, int) { return b > a ? b : a; });
}

INLINE PartI iota(int part) {
    const int32_t all[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return load<PartI>(all + part * LANES);
}

// `values` of which the index plus `first` is below `count`, as unsigned numbers; `other` for the rest.
INLINE f32x16 select_below(uint32_t first, uint32_t count, f32x16 values, float other) {
    return by_part(values, splat(other), [=](PartF a, PartF b, int i) { return (PartU)iota(i) + first < count ? a : b; });
}

// `values` whose word is at least `threshold`; 0 for the rest.
INLINE f32x16 select_at_least(const uint16_t *words, int32_t threshold, f32x16 values) {
    return by_part(values, splat(0), [=](PartF a, PartF b, int i) {
        return (PartI)__builtin_convertvector(load<PartH>(words + i * LANES), PartU) >= threshold ? a : b;
    });
}

// 2^x for x <= 0, within 2 ulp and 1 for 0; 2^-126 below -126, NaN for NaN.
INLINE f32x16 exp2_of_negative(f32x16 x) {
    x = larger(x, splat(-126.0f));
    const f32x16 shifted = x + 12582912.0f;  // rounds to an integer in the low bits
    const f32x16 power = exp2_of_rest(x - (shifted - 12582912.0f));
    return by_part(power, shifted, [](PartF a, PartF b, int) { return (PartF)((PartU)a + ((PartU)b << 23)); });
}

#if defined(__AVX512F__)
INLINE float largest(f32x16 x) { return _mm512_reduce_max_ps((__m512)x.part[0]); }
INLINE float sum(f32x16 x) { return _mm512_reduce_add_ps((__m512)x.part[0]); }
#else
INLINE float largest(f32x16 x) {
    PartF most = x.part[0];
    for (int i = 1; i < PARTS; ++i) most = x.part[i] > most ? x.part[i] : most;
    float result = most[0];
    for (int i = 1; i < LANES; ++i) result = most[i] > result ? most[i] : result;
    return result;
}
INLINE float sum(f32x16 x) {
    PartF total = x.part[0];
    for (int i = 1; i < PARTS; ++i) total += x.part[i];
    float result = 0;
    for (int i = 0; i < LANES; ++i) result += total[i];
    return result;
}
#endif

// ---- in memory: float, or bf16 rounded to nearest ----

INLINE f32x16 load_floats(const float *from) {
    f32x16 result;
#pragma GCC unroll 4
    for (int i = 0; i < PARTS; ++i) result.part[i] = load<PartF>(from + i * LANES);
    return result;
}
INLINE f32x16 load_floats(const bf16 *from) {
    f32x16 result;
#pragma GCC unroll 4
    for (int i = 0; i < PARTS; ++i) result.part[i] = (PartF)(__builtin_convertvector(load<PartH>(from + i * LANES), PartU) << 16);
    return result;
}
INLINE void store_floats(float *to, f32x16 values) {
#pragma GCC unroll 4
    for (int i = 0; i < PARTS; ++i) store(to + i * LANES, values.part[i]);
}
INLINE void store_floats(bf16 *to, f32x16 values) {
#if defined(__AVX512BF16__)
    store(to, _mm512_cvtneps_pbh((__m512)values.part[0]));
#else
    float from[16];
    store_floats(from, values);
#pragma omp simd
    for (int i = 0; i < 16; ++i) to[i] = from_float<bf16>(from[i]);
#endif
}

// The same of the first `count` of 16 numbers; zeros for the others.
template <typename T> INLINE f32x16 load_floats(const T *from, int64_t count) {
    if (count >= 16) return load_floats(from);
    T part[16] = {};
    std::memcpy(part, from, size_t(count) * sizeof(T));
    return load_floats(part);
}
template <typename T> INLINE void store_floats(T *to, f32x16 values, int64_t count) {
    if (count >= 16) return store_floats(to, values);
    T part[16];
    store_floats(part, values);
    std::memcpy(to, part, size_t(count) * sizeof(T));
}
