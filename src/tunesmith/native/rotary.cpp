// Rotary position embedding in the layout whose halves are rotated into each other (upstream's rotate_half).
#include "native.h"

// out [batch, tokens, heads, width], `out_stride` from token to token, from x of any strides but the last, which may be the same memory;
// cos and sin [batch, tokens, width], `angle_stride` apart by batch.
template <typename T, typename Angle>
static void rotary(const T *x, const Angle *cos, const Angle *sin, T *out, int64_t batch, int64_t tokens, int64_t heads, int64_t width,
                   int64_t batch_stride, int64_t token_stride, int64_t head_stride, int64_t out_stride, int64_t angle_stride, int64_t back) {
    const int64_t half = width / 2;
    parallel_rows(batch * tokens, heads * width, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const int64_t b = row / tokens, t = row % tokens;
            const Angle *c = cos + b * angle_stride + t * width, *s = sin + b * angle_stride + t * width;
            for (int64_t head = 0; head < heads; ++head) {
                const T *from = x + b * batch_stride + t * token_stride + head * head_stride;
                T *to = out + row * out_stride + head * width;
                if (back) {
#pragma omp simd
                    for (int64_t i = 0; i < half; ++i) {
                        const float low = to_float(from[i]), high = to_float(from[half + i]);
                        to[i] = from_float<T>(low * to_float(c[i]) + high * to_float(s[half + i]));
                        to[half + i] = from_float<T>(high * to_float(c[half + i]) - low * to_float(s[i]));
                    }
                } else {
#pragma omp simd
                    for (int64_t i = 0; i < half; ++i) {
                        const float low = to_float(from[i]), high = to_float(from[half + i]);
                        to[i] = from_float<T>(low * to_float(c[i]) - high * to_float(s[i]));
                        to[half + i] = from_float<T>(high * to_float(c[half + i]) + low * to_float(s[half + i]));
                    }
                }
            }
        }
    });
}

#define ROTARY(NAME, T, ANGLE)                                                                                                    \
    extern "C" void rotary_##NAME(const T *x, const ANGLE *cos, const ANGLE *sin, T *out, int64_t batch, int64_t tokens,          \
                                  int64_t heads, int64_t width, int64_t batch_stride, int64_t token_stride, int64_t head_stride,  \
                                  int64_t out_stride, int64_t angle_stride, int64_t back) {                                       \
        rotary(x, cos, sin, out, batch, tokens, heads, width, batch_stride, token_stride, head_stride, out_stride, angle_stride,  \
               back);                                                                                                             \
    }
ROTARY(fp32_fp32, float, float)
ROTARY(bf16_fp32, bf16, float)
ROTARY(fp32_bf16, float, bf16)
ROTARY(bf16_bf16, bf16, bf16)
