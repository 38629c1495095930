// Kernels of one file that others call. Their own files read this too, so that the compiler compares.
#pragma once

#include "native.h"

extern "C" {
void layer_norm_bf16_fp32(const bf16 *x, const float *residual, const float *weight, const float *bias, float *sum, float *y, bf16 *rounded,
                          int64_t rounded_stride, float *mean, float *rstd, int64_t rows, int64_t width, double eps, double p, int64_t seed);
void layer_norm_backward_bf16_fp32(const float *sum, const float *weight, const float *mean, const float *rstd, const float *grad,
                                   const bf16 *more, int64_t more_stride, float *grad_sum, bf16 *grad_x, int64_t x_stride, float *grad_weight,
                                   float *grad_bias, int64_t rows, int64_t width, double p, int64_t seed);
void add_rms_norm_bf16(const bf16 *x, const float *residual, const float *weight, float *total, bf16 *y, int64_t y_stride, float *rstd,
                       int64_t rows, int64_t width, double eps);
void add_rms_norm_backward_bf16(const bf16 *x, const float *residual, const float *weight, const float *rstd, const bf16 *grad,
                                int64_t grad_stride, const float *more, float *grad_total, bf16 *rounded, int64_t rounded_stride, bf16 *y,
                                int64_t y_stride, float *grad_weight, int64_t rows, int64_t width);
void attention_forward(void *q, void *k, void *v, void *out, float *row_sums, const int64_t *strides, const int32_t *boundaries,
                       const int32_t *key_boundaries, const int32_t *sequences, int64_t num_sequences, int64_t heads, int64_t kv_heads,
                       int64_t width, int64_t left, int64_t right, double scale, double dropout, int64_t seed, int64_t is_bf16,
                       const float *bias, int64_t bias_size, int64_t bias_center);
void attention_backward(void *q, void *k, void *v, void *out, void *grad, void *grad_q, void *grad_k, void *grad_v, const float *row_sums,
                        const int64_t *strides, const int32_t *boundaries, const int32_t *key_boundaries, const int32_t *sequences,
                        int64_t num_sequences, int64_t heads, int64_t kv_heads, int64_t width, int64_t left, int64_t right, double scale,
                        double dropout, int64_t seed, int64_t is_bf16, const float *bias, int64_t bias_size, int64_t bias_center,
                        float *bias_grad);
}
