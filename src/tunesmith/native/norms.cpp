// LayerNorm (with the dropout and the residual that come before it) and RMSNorm, over the rows of [rows, width].
#include <vector>

#include "kernels.h"

constexpr int64_t BLOCK_ROWS = 32;  // rows whose share of a weight's gradient is added in one go, whatever the threads

// body(row, sums [2, width] of its block) over all rows; then the sums of all blocks, added in their order, in totals (null: not wanted).
template <typename Body> static void with_sums(int64_t rows, int64_t width, float *const (&totals)[2], const Body &body) {
    const int64_t blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    std::vector<float> sums(size_t(blocks * 2 * width), 0.0f);
    float *const all = sums.data();
    parallel_for(blocks, 8192 / (BLOCK_ROWS * std::max<int64_t>(width, 1)) + 1, [=, &body](int64_t begin, int64_t end) {
        for (int64_t row = begin * BLOCK_ROWS; row < std::min(rows, end * BLOCK_ROWS); ++row)
            body(row, all + row / BLOCK_ROWS * 2 * width);
    });
    for (int64_t which = 0; which < 2; ++which)
        for (int64_t block = 0; block < blocks && totals[which]; ++block) {
            const float *from = all + (2 * block + which) * width;
            float *to = totals[which];
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) to[i] = block ? to[i] + from[i] : from[i];
        }
}

// ---- LayerNorm ----

// Normalises a row of `sum`, also into `rounded` if that is not null.
template <typename T>
static INLINE void normalise(const T *sum, const float *weight, const float *bias, T *y, bf16 *rounded, float *mean, float *rstd,
                             int64_t width, float eps) {
    float total = 0, squares = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < width; ++i) total += to_float(sum[i]);
    const float m = total / float(width);
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; ++i) squares += (to_float(sum[i]) - m) * (to_float(sum[i]) - m);
    const float r = 1.0f / std::sqrt(squares / float(width) + eps);
    *mean = m;
    *rstd = r;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) y[i] = from_float<T>((to_float(sum[i]) - m) * r * weight[i] + bias[i]);
    if (rounded) {
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) rounded[i] = from_float<bf16>(to_float(y[i]));
    }
}

template <typename In, typename T>
static void layer_norm(const In *x, const T *residual, const float *weight, const float *bias, T *sum, T *y, bf16 *rounded,
                       int64_t rounded_stride, float *mean, float *rstd, int64_t rows, int64_t width, float eps, const Dropout dropout) {
    parallel_rows(rows, width, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const int64_t first = row * width;
            const T *source = sum + first;
            if (residual)
                with_uniforms(dropout, first, width, [=](int64_t at, int64_t elements, const uint16_t *uniforms) {
#pragma omp simd
                    for (int64_t i = 0; i < elements; ++i) {
                        const int64_t e = first + at + i;
                        sum[e] = from_float<T>(to_float(residual[e]) + to_float(x[e]) * dropout.factor(uniforms[i]));
                    }
                });
            else
                source = reinterpret_cast<const T *>(x) + first;  // the caller's In is T
            normalise(source, weight, bias, y + first, rounded ? rounded + row * rounded_stride : nullptr, mean + row, rstd + row, width,
                      eps);
        }
    });
}

// The gradients of one row: of the sum into `out`, of weight and bias into sums [2, width].
template <typename T>
static INLINE void normalise_backward(const T *sum, const float *weight, const T *grad, T *out, float *sums, int64_t width, float m, float r) {
    float total = 0, along = 0;
    float *const sums_bias = sums + width;
#pragma omp simd reduction(+ : total, along)
    for (int64_t i = 0; i < width; ++i) {
        const float normal = (to_float(sum[i]) - m) * r, slope = to_float(grad[i]) * weight[i];
        sums[i] += to_float(grad[i]) * normal;
        sums_bias[i] += to_float(grad[i]);
        total += slope;
        along += slope * normal;
    }
    const float mean_slope = total / float(width), mean_along = along / float(width);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
        const float normal = (to_float(sum[i]) - m) * r;
        out[i] = from_float<T>(r * (to_float(grad[i]) * weight[i] - mean_slope - normal * mean_along));
    }
}

template <typename In, typename T>
static void layer_norm_backward(const T *sum, const float *weight, const float *mean, const float *rstd, const T *grad,
                                const bf16 *more, int64_t more_stride, T *grad_sum, In *grad_x, int64_t x_stride, float *grad_weight,
                                float *grad_bias, int64_t rows, int64_t width, const Dropout dropout) {
    with_sums(rows, width, {grad_weight, grad_bias}, [=](int64_t row, float *sums) {
        const int64_t first = row * width;
        const T *slope = grad + first;
        T *const to = grad_sum + first;
        if (more) {
            const bf16 *const other = more + row * more_stride;
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) to[i] = from_float<T>(to_float(slope[i]) + to_float(other[i]));
            slope = to;
        }
        normalise_backward(sum + first, weight, slope, to, sums, width, mean[row], rstd[row]);
        if (grad_x)
            with_uniforms(dropout, first, width, [=](int64_t at, int64_t elements, const uint16_t *uniforms) {
                const T *from = grad_sum + first + at;
                In *to = grad_x + row * x_stride + at;
#pragma omp simd
                for (int64_t i = 0; i < elements; ++i) to[i] = from_float<In>(to_float(from[i]) * dropout.factor(uniforms[i]));
            });
    });
}

#define LAYER_NORM(NAME, IN, T)                                                                                                   \
    extern "C" void layer_norm_##NAME(const IN *x, const T *residual, const float *weight, const float *bias, T *sum, T *y,       \
                                      bf16 *rounded, int64_t rounded_stride, float *mean, float *rstd, int64_t rows,              \
                                      int64_t width, double eps, double p, int64_t seed) {                                        \
        layer_norm(x, residual, weight, bias, sum, y, rounded, rounded_stride, mean, rstd, rows, width, float(eps),               \
                   Dropout(p, seed));                                                                                             \
    }                                                                                                                             \
    extern "C" void layer_norm_backward_##NAME(const T *sum, const float *weight, const float *mean, const float *rstd,           \
                                               const T *grad, const bf16 *more, int64_t more_stride, T *grad_sum, IN *grad_x,     \
                                               int64_t x_stride, float *grad_weight, float *grad_bias, int64_t rows,              \
                                               int64_t width, double p, int64_t seed) {                                           \
        layer_norm_backward(sum, weight, mean, rstd, grad, more, more_stride, grad_sum, grad_x, x_stride, grad_weight, grad_bias, \
                            rows, width, Dropout(p, seed));                                                                       \
    }
LAYER_NORM(fp32_fp32, float, float)
LAYER_NORM(bf16_fp32, bf16, float)
LAYER_NORM(bf16_bf16, bf16, bf16)

// ---- RMSNorm ----

// A row of width numbers whose root mean square is 1 / r. Llama rounds what is normalised to x's type before it multiplies by the weight;
// Gemma multiplies by (1 + weight) first.
template <typename T, typename Out>
static INLINE void rms_norm_row(const T *from, const float *weight, Out *to, int64_t width, float r, float offset) {
    if (offset != 0) {
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) to[i] = from_float<Out>(to_float(from[i]) * r * (offset + weight[i]));
    } else {
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) to[i] = from_float<Out>(rounded_to<T>(to_float(from[i]) * r) * weight[i]);
    }
}

template <typename T> static INLINE float rstd_of_row(const T *from, int64_t width, float eps) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; ++i) squares += to_float(from[i]) * to_float(from[i]);
    return 1.0f / std::sqrt(squares / float(width) + eps);
}

template <typename T, typename Out>
static void rms_norm(const T *x, const float *weight, Out *y, float *rstd, int64_t rows, int64_t width, float eps, float offset) {
    parallel_rows(rows, width, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const float r = rstd[row] = rstd_of_row(x + row * width, width, eps);
            rms_norm_row(x + row * width, weight, y + row * width, width, r, offset);
        }
    });
}

// The gradient of one row, and its share of the weight's in `sums`, if that is not null.
template <typename T, typename Out>
static INLINE void rms_norm_backward_row(const T *from, const float *weight, float r, const Out *slope, T *to, float *sums, int64_t width,
                                         float offset) {
    float along = 0;
    if (sums) {
#pragma omp simd reduction(+ : along)
        for (int64_t i = 0; i < width; ++i) {
            const float normal = to_float(from[i]) * r;
            sums[i] += to_float(slope[i]) * normal;
            along += to_float(slope[i]) * (offset + weight[i]) * normal;
        }
    } else {
#pragma omp simd reduction(+ : along)
        for (int64_t i = 0; i < width; ++i) along += to_float(slope[i]) * (offset + weight[i]) * to_float(from[i]) * r;
    }
    const float mean_along = along / float(width);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i)
        to[i] = from_float<T>(r * (to_float(slope[i]) * (offset + weight[i]) - to_float(from[i]) * r * mean_along));
}

// body(row, sums of its block, or null) over all rows, and the sums of all in `grad_weight`, if that is wanted.
template <typename Body> static void with_weight_sums(int64_t rows, int64_t width, float *grad_weight, const Body &body) {
    if (grad_weight)
        with_sums(rows, width, {grad_weight, nullptr}, body);
    else
        parallel_rows(rows, width, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) body(row, nullptr);
        });
}

template <typename T, typename Out>
static void rms_norm_backward(const T *x, const float *weight, const float *rstd, const Out *grad, T *grad_x, float *grad_weight,
                              int64_t rows, int64_t width, float offset) {
    with_weight_sums(rows, width, grad_weight, [=](int64_t row, float *sums) {
        const int64_t first = row * width;
        rms_norm_backward_row(x + first, weight, rstd[row], grad + first, grad_x + first, sums, width, offset);
    });
}

// total = residual + x, and y = its norm, with rows `y_stride` apart; without x, the norm of the residual.
template <typename T>
static void add_rms_norm(const T *x, const float *residual, const float *weight, float *total, T *y, int64_t y_stride, float *rstd,
                         int64_t rows, int64_t width, float eps) {
    parallel_rows(rows, width, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const int64_t first = row * width;
            if (x) {
#pragma omp simd
                for (int64_t i = first; i < first + width; ++i) total[i] = residual[i] + to_float(x[i]);
            }
            const float r = rstd_of_row((x ? total : residual) + first, width, eps);
            rms_norm_row((x ? total : residual) + first, weight, y + row * y_stride, width, r, 0.0f);
            rstd[row] = r;
        }
    });
}

// The gradient of the total, residual + x: `more`, and what comes through the norm. If they are not null, `rounded` is filled with it too,
// and y, which may be `grad`, with the norm once more.
template <typename T>
static void add_rms_norm_backward(const T *x, const float *residual, const float *weight, const float *rstd, const T *grad,
                                  int64_t grad_stride, const float *more, float *grad_total, T *rounded, int64_t rounded_stride, T *y,
                                  int64_t y_stride, float *grad_weight, int64_t rows, int64_t width) {
    with_weight_sums(rows, width, grad_weight, [=](int64_t row, float *sums) {
        const int64_t first = row * width;
        float *const to = grad_total + first;
        const float *total = residual + first;
        const auto add_up = [&](float *sum) {
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) sum[i] = residual[first + i] + to_float(x[first + i]);
            return sum;
        };
        if (x) total = add_up(to);
        rms_norm_backward_row(total, weight, rstd[row], grad + row * grad_stride, to, sums, width, 0.0f);
        if (y) {
            thread_local std::vector<float> again;
            if (x) again.resize(width);
            rms_norm_row(x ? add_up(again.data()) : total, weight, y + row * y_stride, width, rstd[row], 0.0f);
        }
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) to[i] += more[first + i];
        if (rounded) {
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) rounded[row * rounded_stride + i] = from_float<T>(to[i]);
        }
    });
}

#define ADD_RMS_NORM(NAME, T)                                                                                                      \
    extern "C" void add_rms_norm_##NAME(const T *x, const float *residual, const float *weight, float *total, T *y,                \
                                        int64_t y_stride, float *rstd, int64_t rows, int64_t width, double eps) {                  \
        add_rms_norm(x, residual, weight, total, y, y_stride, rstd, rows, width, float(eps));                                      \
    }                                                                                                                              \
    extern "C" void add_rms_norm_backward_##NAME(const T *x, const float *residual, const float *weight, const float *rstd,        \
                                                 const T *grad, int64_t grad_stride, const float *more, float *grad_total,         \
                                                 T *rounded, int64_t rounded_stride, T *y, int64_t y_stride, float *grad_weight,   \
                                                 int64_t rows, int64_t width) {                                                    \
        add_rms_norm_backward(x, residual, weight, rstd, grad, grad_stride, more, grad_total, rounded, rounded_stride, y,          \
                              y_stride, grad_weight, rows, width);                                                                 \
    }
ADD_RMS_NORM(fp32, float)
ADD_RMS_NORM(bf16, bf16)

#define RMS_NORM(NAME, T, OUT)                                                                                                     \
    extern "C" void rms_norm_##NAME(const T *x, const float *weight, OUT *y, float *rstd, int64_t rows, int64_t width, double eps, \
                                    double offset) {                                                                               \
        rms_norm(x, weight, y, rstd, rows, width, float(eps), float(offset));                                                      \
    }                                                                                                                              \
    extern "C" void rms_norm_backward_##NAME(const T *x, const float *weight, const float *rstd, const OUT *grad, T *grad_x,       \
                                             float *grad_weight, int64_t rows, int64_t width, double offset) {                     \
        rms_norm_backward(x, weight, rstd, grad, grad_x, grad_weight, rows, width, float(offset));                                 \
    }
RMS_NORM(fp32_fp32, float, float)
RMS_NORM(bf16_fp32, bf16, float)
RMS_NORM(bf16_bf16, bf16, bf16)
