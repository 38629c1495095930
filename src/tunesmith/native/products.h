// Products of matrices in bf16, where the processor has instructions for them.
#pragma once

#include "tiles.h"

#if WITH_AMX
#define WITH_PRODUCTS 1
#elif defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__linux__)
#define WITH_PAIRS 1
#define WITH_PRODUCTS 1
#else
#define WITH_PRODUCTS 0
#endif

// out[m][n] = sum over k of a[m][k] b[k][n] (+ bias[n]) (+ out[m][n]), in bf16 or fp32. One stride of a and one of b is 1.
extern "C" void product(const bf16 *a, const bf16 *b, void *out, const float *bias, int64_t m, int64_t n, int64_t k, int64_t a_m_stride,
                        int64_t a_k_stride, int64_t b_k_stride, int64_t b_n_stride, int64_t out_stride, int64_t is_bf16, int64_t accumulate);
