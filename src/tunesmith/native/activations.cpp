// GELU, its tanh approximation and SiLU: alone, and times a second input; backward from the inputs.
#include "native.h"

struct Slope {
    float value, slope;
};

struct Gelu {
    static INLINE float cdf(float x) {
        const float tail = 0.5f * fast_erfc(std::fabs(x) * 0.70710678f);
        return x < 0 ? tail : 1.0f - tail;
    }
    static INLINE float value(float x) { return x * cdf(x); }
    static INLINE Slope both(float x) {
        const float share = cdf(x);
        return {x * share, share + x * 0.39894228f * fast_exp(-0.5f * x * x)};
    }
};

// x (1 + tanh u) / 2 = x sigmoid(2 u)
struct GeluTanh {
    static INLINE float sigmoid(float x) { return fast_sigmoid(1.5957691f * x * (1.0f + 0.044715f * x * x)); }
    static INLINE float value(float x) { return x * sigmoid(x); }
    static INLINE Slope both(float x) {
        const float s = sigmoid(x);
        return {x * s, s + s * (1.0f - s) * 1.5957691f * x * (1.0f + 0.134145f * x * x)};
    }
};

struct Silu {
    static INLINE float value(float x) { return x * fast_sigmoid(x); }
    static INLINE Slope both(float x) {
        const float s = fast_sigmoid(x);
        return {x * s, s + x * s * (1.0f - s)};
    }
};

// The exact GELU of each bf16, correctly rounded, and its slope: a look is cheaper than erfc and exp.
struct GeluOfBf16 {
    bf16 values[65536 + 1];  // a gather reads two
    float slopes[65536];
    GeluOfBf16() {
        for (int i = 0; i < 65536; ++i) {
            const double x = to_float(bf16{uint16_t(i)}), cdf = 0.5 * std::erfc(-x * 0.70710678118654752440);
            values[i] = from_float<bf16>(float(x * cdf));
            slopes[i] = float(cdf + x * 0.39894228040143267794 * std::exp(-0.5 * x * x));
        }
    }
    static const GeluOfBf16 &table() {
        static const GeluOfBf16 made;
        return made;
    }
};

template <typename Act, typename T> static void forward_row(const T *x, T *y, int64_t width) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) y[i] = from_float<T>(Act::value(to_float(x[i])));
}

template <typename Act, typename T> static void backward_row(const T *x, const T *grad, T *grad_x, int64_t width) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) grad_x[i] = from_float<T>(to_float(grad[i]) * Act::both(to_float(x[i])).slope);
}

template <> void forward_row<Gelu, bf16>(const bf16 *x, bf16 *y, int64_t width) {
    const bf16 *values = GeluOfBf16::table().values;
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= width; i += 16) {
        const __m512i places = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(x + i)));
        _mm256_storeu_si256((__m256i *)(y + i), _mm512_cvtepi32_epi16(_mm512_i32gather_epi32(places, values, 2)));
    }
#endif
    for (; i < width; ++i) y[i] = values[x[i].bits];
}

template <> void backward_row<Gelu, bf16>(const bf16 *x, const bf16 *grad, bf16 *grad_x, int64_t width) {
    const float *slopes = GeluOfBf16::table().slopes;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) grad_x[i] = from_float<bf16>(to_float(grad[i]) * slopes[x[i].bits]);
}

// y from x [rows, width], whose rows lie so far apart.
template <typename Act, typename T> static void forward(const T *x, T *y, int64_t rows, int64_t width, int64_t x_stride, int64_t y_stride) {
    parallel_rows(rows, width, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) forward_row<Act>(x + row * x_stride, y + row * y_stride, width);
    });
}

// grad_x, which may be x itself, from x [rows, width] and the gradient of y, whose rows lie so far apart.
template <typename Act, typename T>
static void backward(const T *x, const T *grad, T *grad_x, int64_t rows, int64_t width, int64_t x_stride, int64_t grad_stride, int64_t grad_x_stride) {
    parallel_rows(rows, width, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
            backward_row<Act>(x + row * x_stride, grad + row * grad_stride, grad_x + row * grad_x_stride, width);
    });
}

// y, whose rows lie `y_stride` apart, from gate and up [rows, width], whose rows lie `stride` apart.
template <typename Act, typename T>
static void times(const T *gate, const T *up, T *y, int64_t rows, int64_t width, int64_t stride, int64_t y_stride) {
    parallel_rows(rows, width, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const T *g = gate + row * stride, *u = up + row * stride;
            T *out = y + row * y_stride;
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) out[i] = from_float<T>(Act::value(to_float(g[i])) * to_float(u[i]));
        }
    });
}

// The gradients of a row of gate and up, which may be written over these, and (`WITH_Y`) what `times` made of them, over `grad`.
template <typename Act, bool WITH_Y, typename T>
static INLINE void times_backward_row(const T *gate, const T *up, const T *grad, T *grad_gate, T *grad_up, T *y, int64_t width) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
        const float slope = to_float(grad[i]), times = to_float(up[i]);
        const Slope act = Act::both(to_float(gate[i]));
        grad_gate[i] = from_float<T>(slope * times * act.slope);
        grad_up[i] = from_float<T>(slope * act.value);
        if (WITH_Y) y[i] = from_float<T>(act.value * times);
    }
}

template <typename Act, typename T>
static void times_backward(const T *gate, const T *up, const T *grad, T *grad_gate, T *grad_up, T *y, int64_t rows, int64_t width,
                           int64_t stride, int64_t grad_stride, int64_t gates_stride, int64_t y_stride) {
    parallel_rows(rows, width, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const T *g = gate + row * stride, *u = up + row * stride, *d = grad + row * grad_stride;
            T *dg = grad_gate + row * gates_stride, *du = grad_up + row * gates_stride;
            if (y)
                times_backward_row<Act, true>(g, u, d, dg, du, y + row * y_stride, width);
            else
                times_backward_row<Act, false>(g, u, d, dg, du, y, width);
        }
    });
}

#define ACTIVATION(NAME, ACT, T)                                                                                                     \
    extern "C" void NAME(const T *x, T *y, int64_t rows, int64_t width, int64_t x_stride, int64_t y_stride) {                        \
        forward<ACT>(x, y, rows, width, x_stride, y_stride);                                                                         \
    }                                                                                                                                \
    extern "C" void backward_##NAME(const T *x, const T *grad, T *grad_x, int64_t rows, int64_t width, int64_t x_stride,             \
                                    int64_t grad_stride, int64_t grad_x_stride) {                                                    \
        backward<ACT>(x, grad, grad_x, rows, width, x_stride, grad_stride, grad_x_stride);                                           \
    }                                                                                                                                \
    extern "C" void times_##NAME(const T *gate, const T *up, T *y, int64_t rows, int64_t width, int64_t stride, int64_t y_stride) {  \
        times<ACT>(gate, up, y, rows, width, stride, y_stride);                                                                      \
    }                                                                                                                                \
    extern "C" void times_backward_##NAME(const T *gate, const T *up, const T *grad, T *grad_gate, T *grad_up, T *y, int64_t rows,   \
                                          int64_t width, int64_t stride, int64_t grad_stride, int64_t gates_stride,                  \
                                          int64_t y_stride) {                                                                        \
        times_backward<ACT>(gate, up, grad, grad_gate, grad_up, y, rows, width, stride, grad_stride, gates_stride, y_stride);        \
    }
ACTIVATION(gelu_fp32, Gelu, float)
ACTIVATION(gelu_bf16, Gelu, bf16)
ACTIVATION(gelu_tanh_fp32, GeluTanh, float)
ACTIVATION(gelu_tanh_bf16, GeluTanh, bf16)
ACTIVATION(silu_fp32, Silu, float)
ACTIVATION(silu_bf16, Silu, bf16)
