// What blocks that are one call each have in common: memory, attention, sums.
#pragma once

#include "kernels.h"
#include "stacks.h"

// A piece of memory, given out from its beginning; of none, how much would have been.
class Arena {
    char *const data;
    int64_t used = 0;

  public:
    explicit Arena(void *data) : data(static_cast<char *>(data)) {}
    int64_t size() const { return used; }
    template <typename T> T *take(int64_t count) {
        T *found = data ? reinterpret_cast<T *>(data + used) : nullptr;
        used += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
        return found;
    }
};

struct Rows {
    bf16 *data;
    int64_t stride;
};

// to [rows, width], `stride` apart, = from, rounded.
inline void round_rows(const float *from, Rows to, int64_t rows, int64_t width) {
    parallel_rows(rows, width, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) to.data[row * to.stride + i] = from_float<bf16>(from[row * width + i]);
    });
}

// to [count] = from + other, which may be the same memory.
inline void add(const float *from, const bf16 *other, float *to, int64_t count) {
    parallel_rows(count, 1, [=](int64_t begin, int64_t end) {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) to[i] = from[i] + to_float(other[i]);
    });
}

// Attention in a pass: native/structs.py fills it.
struct Attention {
    const int32_t *boundaries, *key_boundaries, *sequences;
    int64_t num_sequences, heads, kv_heads, width, left, right;
    double scale, dropout;
    int64_t seed;

    int64_t columns() const { return heads * width; }
    int64_t kv_columns() const { return kv_heads * width; }

    // Queries, keys and values side by side in rows, or keys and values in rows of their own.
    void split(Rows queries, Rows keys, Rows (&parts)[3]) const {
        const Rows rest = keys.data ? keys : Rows{queries.data + columns(), queries.stride};
        parts[0] = queries;
        parts[1] = rest;
        parts[2] = {rest.data + kv_columns(), rest.stride};
    }
    // `out`, and row_sums [rows, heads, 2], which the gradient wants.
    void forward(const Rows (&from)[3], Rows out, float *row_sums) const {
        const int64_t strides[] = {from[0].stride, width, from[1].stride, width, from[2].stride, width, out.stride, width};
        attention_forward(from[0].data, from[1].data, from[2].data, out.data, row_sums, strides, boundaries, key_boundaries, sequences,
                          num_sequences, heads, kv_heads, width, left, right, scale, dropout, seed, true, nullptr, 0, 0);
    }
    // The gradients of queries, keys and values from `grad`, that of `out`.
    void backward(const Rows (&from)[3], Rows out, const float *row_sums, Rows grad, const Rows (&to)[3]) const {
        const int64_t strides[] = {from[0].stride, width, from[1].stride, width, from[2].stride, width, out.stride,   width,
                                   grad.stride,    width, to[0].stride,   width, to[1].stride,   width, to[2].stride, width};
        attention_backward(from[0].data, from[1].data, from[2].data, out.data, grad.data, to[0].data, to[1].data, to[2].data, row_sums, strides,
                           boundaries, key_boundaries, sequences, num_sequences, heads, kv_heads, width, left, right, scale, dropout, seed,
                           true, nullptr, 0, 0, nullptr);
    }
};
