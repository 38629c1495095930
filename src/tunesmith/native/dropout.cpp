// Dropout whose mask is drawn again wherever it is needed.
#include "native.h"

template <typename In, typename Out>
static void drop(const In *x, Out *out, int64_t count, const Dropout dropout, int64_t offset) {
    constexpr int64_t TILE = 1024;
    parallel_for((count + TILE - 1) / TILE, 8, [=](int64_t first, int64_t last) {
        const int64_t begin = first * TILE, end = std::min(count, last * TILE);
        with_uniforms(dropout, offset + begin, end - begin, [=](int64_t at, int64_t elements, const uint16_t *uniforms) {
            const int64_t start = begin + at;
#pragma omp simd
            for (int64_t i = 0; i < elements; ++i) out[start + i] = from_float<Out>(to_float(x[start + i]) * dropout.factor(uniforms[i]));
        });
    });
}

#define DROPOUT(NAME, IN, OUT)                                                                                       \
    extern "C" void dropout_##NAME(const IN *x, OUT *out, int64_t count, double p, int64_t seed, int64_t offset) {   \
        drop(x, out, count, Dropout(p, seed), offset);                                                               \
    }
DROPOUT(fp32_fp32, float, float)
DROPOUT(bf16_fp32, bf16, float)
DROPOUT(fp32_bf16, float, bf16)
DROPOUT(bf16_bf16, bf16, bf16)
