// What the kernels share: bf16, threads, a generator that is indexed by element, and functions that vectorise.
//
// A kernel is an extern "C" function of pointers, int64_t and double: what library.call passes for tensors, ints and floats.
// Loops over elements say `#pragma omp simd`; threads come from parallel_for and parallel_rows alone (compiled with -fopenmp-simd).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

// ---- bf16 ----

struct bf16 {
    uint16_t bits;
};

INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

INLINE float to_float(float x) { return x; }
INLINE float to_float(bf16 x) { return float_of(uint32_t(x.bits) << 16); }

// Rounds to nearest, ties to even; a NaN stays one.
template <typename T> INLINE T from_float(float x);
template <> INLINE float from_float<float>(float x) { return x; }
template <> INLINE bf16 from_float<bf16>(float x) {
    const uint32_t bits = bits_of(x);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return bf16{uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
}

// x as T would hold it.
template <typename T> INLINE float rounded_to(float x) { return to_float(from_float<T>(x)); }

// ---- threads: those of torch's OpenMP, so that torch.set_num_threads is obeyed; GOMP_parallel is what `#pragma omp parallel` calls ----

extern "C" {
void GOMP_parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags);
int omp_get_max_threads(void);
int omp_get_num_threads(void);
int omp_get_thread_num(void);
int omp_in_parallel(void);
}

// body(begin, end) over [0, count) in contiguous shares, one a thread and none below `grain` items.
template <typename Body> void parallel_for(int64_t count, int64_t grain, const Body &body) {
    const int64_t shares = omp_in_parallel() ? 1 : std::min<int64_t>(omp_get_max_threads(), count / std::max<int64_t>(grain, 1));
    if (shares <= 1) {
        if (count > 0) body(int64_t(0), count);
        return;
    }
    struct Work {
        const Body &body;
        int64_t count;
    } work{body, count};
    GOMP_parallel(
        [](void *data) {
            const Work &mine = *static_cast<Work *>(data);
            const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
            const int64_t begin = mine.count * thread / threads, end = mine.count * (thread + 1) / threads;
            if (begin < end) mine.body(begin, end);
        },
        &work, unsigned(shares), 0);
}

// The same over rows of `width` elements: a thread for every 8192 elements or more.
template <typename Body> void parallel_rows(int64_t rows, int64_t width, const Body &body) {
    parallel_for(rows, 8192 / std::max<int64_t>(width, 1) + 1, body);
}

// ---- random numbers: Philox4x32-10 (Salmon et al. 2011), a function of (seed, index of the element) and of nothing else ----

typedef uint64_t u64x8 __attribute__((vector_size(64)));

// Products of the low halves of eight lanes.
INLINE u64x8 multiply_low(u64x8 a, u64x8 b) {
#if defined(__AVX512F__)
    return (u64x8)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    __m256i x[2], y[2];
    std::memcpy(x, &a, 64);
    std::memcpy(y, &b, 64);
    x[0] = _mm256_mul_epu32(x[0], y[0]);
    x[1] = _mm256_mul_epu32(x[1], y[1]);
    std::memcpy(&a, x, 64);
    return a;
#else
    return (a & 0xffffffffull) * (b & 0xffffffffull);
#endif
}

constexpr int64_t GROUP = 64;

// The 16-bit uniforms of elements [64 group, 64 group + 64): eight counters, four words of 32 bits each.
INLINE void draw_group(uint64_t seed, uint64_t group, uint16_t *uniforms) {
    const u64x8 lane = {0, 1, 2, 3, 4, 5, 6, 7}, low = lane * 0 + 0xffffffffull;
    const u64x8 m0 = lane * 0 + 0xD2511F53ull, m1 = lane * 0 + 0xCD9E8D57ull;
    const u64x8 counter = lane + group * 8;
    u64x8 c0 = counter, c1 = counter >> 32, c2 = lane * 0, c3 = lane * 0;
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
        const u64x8 p0 = multiply_low(c0, m0), p1 = multiply_low(c2, m1);
        c0 = (p1 >> 32) ^ c1 ^ uint64_t(k0);
        c2 = (p0 >> 32) ^ c3 ^ uint64_t(k1);
        c1 = p1;  // only the low half of a lane counts
        c3 = p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    const u64x8 first = (c0 & low) | (c1 << 32), second = (c2 & low) | (c3 << 32);
    std::memcpy(uniforms, &first, 64);
    std::memcpy(uniforms + 32, &second, 64);
}

// What dropout does with a probability: an element is kept when its uniform is at least `threshold`, and multiplied by `scale`.
struct Dropout {
    uint64_t seed;
    uint32_t threshold;
    float scale;
    Dropout(double p, int64_t seed)
        : seed(uint64_t(seed)), threshold(uint32_t(std::nearbyint(p * 65536))), scale(p < 1 ? float(1 / (1 - p)) : 0.0f) {}
    INLINE float factor(uint16_t uniform) const { return float(uint32_t(uniform) >= threshold) * scale; }  // a choice would not vectorise
};

// body(offset in the range, elements, their uniforms) over [begin, begin + count), up to 1024 elements at a time.
template <typename Body> INLINE void with_uniforms(const Dropout &dropout, int64_t begin, int64_t count, const Body &body) {
    constexpr int64_t GROUPS = 16;
    alignas(64) uint16_t uniforms[GROUPS * GROUP];
    for (int64_t done = 0; done < count;) {
        const int64_t first = (begin + done) / GROUP, skipped = (begin + done) % GROUP;
        const int64_t elements = std::min(GROUPS * GROUP - skipped, count - done);
        if (dropout.threshold)  // otherwise every value is above it
            for (int64_t group = 0; group * GROUP < skipped + elements; ++group)
                draw_group(dropout.seed, uint64_t(first + group), uniforms + group * GROUP);
        body(done, elements, uniforms + skipped);
        done += elements;
    }
}

// ---- functions ----

constexpr float LOG2_E = 1.44269504f;

// e^x within 2e-7 of its value; 0 below -87, infinite above 88.7, NaN for NaN.
INLINE float fast_exp(float x) {
    x = x < -87.33f ? -87.33f : x;
    x = x > 89.0f ? 89.0f : x;
    const float shifted = x * LOG2_E + 12582912.0f;  // rounds to an integer in the low bits
    const float n = shifted - 12582912.0f;
    const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const float half_power = float_of((bits_of(shifted) - 0x4b400000u + 126u) << 23);  // 2^(n - 1): 2^128 does not fit
    return p * half_power * 2.0f;
}

// 2^r for |r| <= 1/2 within 8e-8 of its value, of one number or many.
template <typename V> INLINE V exp2_of_rest(V r) {
    V p = r * 0.0001534581242594868f + 0.0013399930903688073f;
    p = p * r + 0.009618489071726799f;
    p = p * r + 0.05550328642129898f;
    p = p * r + 0.24022646248340607f;
    p = p * r + 0.6931471824645996f;
    return p * r + 1.0f;
}

// 2^x for x <= 0 within 2e-7 of its value; 2^-126 below -126, NaN for NaN.
INLINE float fast_exp2_of_negative(float x) {
    x = x < -126.0f ? -126.0f : x;
    const float shifted = x + 12582912.0f;  // rounds to an integer in the low bits
    return float_of(bits_of(exp2_of_rest(x - (shifted - 12582912.0f))) + (bits_of(shifted) << 23));
}

INLINE float fast_sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }
INLINE float fast_tanh(float x) { return 1.0f - 2.0f / (1.0f + fast_exp(2.0f * x)); }

// 1 - erf(x) for x >= 0 within 1.5e-7: e^(-x R(x)), R fitted to -log(erfc(x)) / x on [0, 4], beyond which R(4) stands.
INLINE float fast_erfc(float x) {
    const float z = x > 4.0f ? 4.0f : x;
    float p = -3.8592784221691545e-06f;
    p = p * z + 6.25821776338853e-05f;
    p = p * z - 0.0004069124988745898f;
    p = p * z + 0.0011865429114550352f;
    p = p * z + 0.0004095298354513943f;
    p = p * z - 0.019530942663550377f;
    p = p * z + 0.10291048139333725f;
    p = p * z + 0.6365978717803955f;
    p = p * z + 1.128380298614502f;
    return fast_exp(-x * p);
}

INLINE float fast_erf(float x) { return std::copysign(1.0f - fast_erfc(std::fabs(x)), x); }
