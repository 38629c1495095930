// Attention within sequences that lie end to end: scores, softmax, dropout and their gradients, a (sequence, head) at a time. Keys are tokens
// of the same sequences, or those of others, one for each.
//
// Sums, softmax and its gradient are fp32. A task is one head (of keys, in the gradient) of one sequence and shares nothing with others, so
// the bits do not depend on the threads. Of a block of 32 queries, scores against all its keys are held in the cache, never in memory.
#include "attention.h"
#include "kernels.h"

#include <atomic>
#include <cstdlib>
#include <limits>
#include <memory>

namespace {

constexpr int64_t KEY_CHUNK = 256;  // keys at a time in the gradient: what is kept of a block then stays near the first-level cache

// Memory of one thread, kept for the next call.
template <typename T> T *workspace(int which, int64_t count) {
    struct Free {
        void operator()(void *pointer) const { std::free(pointer); }
    };
    static thread_local std::unique_ptr<void, Free> memory[18];
    static thread_local size_t sizes[18];
    const size_t needed = (size_t(count) * sizeof(T) + 63) / 64 * 64;
    if (sizes[which] < needed) {
        memory[which].reset(std::aligned_alloc(64, needed));
        sizes[which] = needed;
    }
    return static_cast<T *>(memory[which].get());
}

// body(task, whether AMX may be used) for each of [0, count), each by whichever thread is free.
template <typename Body> void parallel_tasks(int64_t count, const Body &body) {
    std::atomic<int64_t> next{0};
    parallel_for(std::min<int64_t>(count, omp_get_max_threads()), 1, [&](int64_t, int64_t) {
        const AmxSession session;
        for (int64_t task; (task = next++) < count;) body(task, session.used);
    });
}

// `rows` rows of a C of padded(width) columns, times `factor`.
template <typename T> void store_rows(const float *c, int64_t rows, int64_t width, const float *factors, T *to, int64_t stride) {
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t column = 0; column < width; column += 16) {
            const float *from = c + (row / 16 * (padded(width) / 16) + column / 16) * TILE<float> + row % 16 * 16;
            store_floats(to + row * stride + column, load_floats(from) * factors[row], width - column);
        }
}

// The same of a C of padded(width) rows and a column for each row that is stored.
template <typename T> void store_columns(const float *c, int64_t columns, int64_t width, float factor, T *to, int64_t stride) {
    alignas(64) float turned[TILE<float>];
    for (int64_t tile = 0; tile < width; tile += 16)
        for (int64_t column = 0; column < columns; column += 16) {
            transpose_words(c + (tile / 16 * (padded(columns) / 16) + column / 16) * TILE<float>, turned);
            for (int64_t i = 0; i < std::min<int64_t>(16, columns - column); ++i)
                store_floats(to + (column + i) * stride + tile, load_floats(turned + 16 * i) * factor, width - tile);
        }
}

// ---- forward ----

template <typename T, typename Op> struct Forward {
    const Problem &problem;
    Matrix<const T> q, k, v;
    Matrix<T> out;
    float *row_sums;  // [tokens, heads, 2]: the largest exponent of a row, and the sum of the powers of two of what the others are below it

    // From scores (a C) to numerators before division (an A); `sums` of each row of them, before dropout.
    template <bool PLAIN> void softmax(const Block &block, const float *scores, Op *numerators, float *sums) const {
        const int64_t num_keys = block.end_key - block.first_key;
        for (int64_t row = 0; row < block.rows; row += 2) {  // what the others hold is multiplied and not stored
            const Pair<PLAIN> pair(block, row);
            const float *const from = scores + row / 16 * (num_keys / 16) * TILE<float> + row % 16 * 16;
            const auto exponents = [&](int i, int64_t column) {
                return pair.exponents(i, from + column / 16 * TILE<float> + 16 * i, block.first_key + column);
            };
            f32x16 most[2] = {splat(-std::numeric_limits<float>::infinity()), splat(-std::numeric_limits<float>::infinity())};
            for (int64_t column = 0; column < num_keys; column += 32)
                pair.visit(block.first_key + column, [&](auto hides) {
                    for (int part = 0; part < 4; ++part) {
                        const int i = part % 2, at = part / 2 * 16;
                        const f32x16 seen = pair.select(hides, i, block.first_key + column + at, exponents(i, column + at), -std::numeric_limits<float>::infinity());
                        most[i] = larger(most[i], seen);
                    }
                });
            float maxima[2];
            for (int i = 0; i < 2; ++i) maxima[i] = pair.count[i] ? largest(most[i]) : 0;
            f32x16 totals[2] = {};
            for (int64_t column = 0; column < num_keys; column += 32)
                pair.visit(block.first_key + column, [&](auto hides) {
                    const int64_t key = block.first_key + column;
                    const Kept kept(block, row / 2, key);
                    for (int i = 0; i < 2; ++i) {
                        f32x16 powers[2];
                        for (int half = 0; half < 2; ++half) {
                            const f32x16 power = exp2_of_negative(exponents(i, column + 16 * half) - maxima[i]);
                            const f32x16 seen = pair.select(hides, i, key + 16 * half, power, 0);
                            totals[i] += seen;
                            powers[half] = pair.keep(kept, i, half, seen);
                        }
                        Op *const to = numerators + (row / 16 * (num_keys / DEPTH<Op>) + column / DEPTH<Op>) * TILE<Op>;
                        store_row(to + (row % 16 + i) * DEPTH<Op>, powers[0], powers[1]);
                    }
                });
            for (int i = 0; i < 2 && row + i < block.rows; ++i) {
                float *const both = row_sums + 2 * ((block.token + row + i) * problem.heads + block.head);
                both[0] = maxima[i];
                both[1] = sums[row + i] = sum(totals[i]);
            }
        }
    }

    void operator()(int64_t sequence, int64_t head, bool amx) const {
        const int64_t length = problem.length(sequence), start = problem.key_start(sequence), keys_length = problem.num_keys(sequence);
        const int64_t width = problem.width, padded_width = padded(width), padded_length = padded(keys_length), size = padded_length * padded_width;
        const int64_t kv_head = head / (problem.heads / problem.kv_heads), depth = padded_width / DEPTH<Op>;
        Op *a = workspace<Op>(0, size), *keys = workspace<Op>(1, size), *values = workspace<Op>(2, size);
        Op *queries = workspace<Op>(3, BLOCK * padded_width), *numerators = workspace<Op>(4, BLOCK * padded_length);
        float *scores = workspace<float>(5, BLOCK * padded_length), *result = workspace<float>(6, BLOCK * padded_width);
        rows_to_a(k.at(start, kv_head), k.token_stride, keys_length, width, a);
        turn_tiles(a, size / TILE<Op>, keys);
        rows_to_a(v.at(start, kv_head), v.token_stride, keys_length, width, a);
        a_to_b(a, padded_length, padded_width, values);
        for (int64_t query = 0; query < length; query += BLOCK) {
            const Block block{problem, sequence, head, query};
            const int64_t num_keys = block.end_key - block.first_key;
            rows_to_a(q.at(block.token, head), q.token_stride, block.rows, width, queries);
            gemm({block.computed_rows(), num_keys, padded_width, {depth, 1}, {1, depth}, {num_keys / 16, 1}, false}, queries,
                 keys + block.first_key * padded_width, scores, amx);
            float factors[BLOCK];
            problem.is_plain() ? softmax<true>(block, scores, numerators, factors) : softmax<false>(block, scores, numerators, factors);
            for (int64_t row = 0; row < block.rows; ++row) factors[row] = (problem.dropout.threshold ? problem.dropout.scale : 1) / factors[row];
            gemm({block.computed_rows(), padded_width, block.computed_keys(block.first_key, num_keys), {num_keys / DEPTH<Op>, 1},
                  {padded_width / 16, 1}, {padded_width / 16, 1}, false}, numerators, values + block.first_key * padded_width, result, amx);
            store_rows(result, block.rows, width, factors, out.at(block.token, head), out.token_stride);
        }
    }
};

// ---- gradient ----

// Gradients of queries, keys and values may be written over these: a task reads all of its head first.
template <typename T, typename Op> struct Backward {
    const Problem &problem;
    Matrix<const T> q, k, v, out, grad;
    const float *row_sums;
    Matrix<T> grad_q, grad_k, grad_v;

    // What the blocks of a head write and read again.
    struct Chunk {
        float *scores, *grads;       // C: queries by keys
        Op *kept_b, *grads_b;        // B: queries by keys
        Op *grads_a;                 // A: queries by keys
    };

    // From scores and the gradients of probabilities to probabilities after dropout and gradients of scores, for keys [key, key + num_keys).
    template <bool PLAIN> void differentiate(const Block &block, int64_t key, int64_t num_keys, const float *deltas, const Chunk &chunk) const {
#if WITH_AMX  // which multiplies whole tiles
        for (int64_t row = block.rows + block.rows % 2; row < BLOCK; row += 2)
            for (int64_t column = 0; column < num_keys; column += 16) {
                const int64_t packed = (row / DEPTH<Op> * (num_keys / 16) + column / 16) * TILE<Op> + row % DEPTH<Op> * 16;
                store_rows_of_b(chunk.kept_b + packed, f32x16{}, f32x16{});
                store_rows_of_b(chunk.grads_b + packed, f32x16{}, f32x16{});
            }
#endif
        const float scale = PLAIN ? 1 : problem.dropout.scale;
        for (int64_t row = 0; row < block.rows; row += 2) {
            const Pair<PLAIN> pair(block, row);
            float maxima[2] = {}, factors[2] = {};
            for (int i = 0; i < 2 && row + i < block.rows; ++i) {
                const float *const both = row_sums + 2 * ((block.token + row + i) * problem.heads + block.head);
                maxima[i] = both[0];
                factors[i] = 1 / both[1];
            }
            for (int64_t column = 0; column < num_keys; column += 32)
                pair.visit(key + column, [&](auto hides) {
                    const Kept kept(block, row / 2, key + column);
                    f32x16 probabilities[2][2], grads[2][2];  // of a half, of a row
                    for (int half = 0; half < 2; ++half) {
                        const int64_t at = key + column + 16 * half;
                        const int64_t place = (row / 16 * (num_keys / 16) + column / 16 + half) * TILE<float> + row % 16 * 16;
                        for (int i = 0; i < 2; ++i) {
                            const f32x16 power = exp2_of_negative(pair.exponents(i, chunk.scores + place + 16 * i, at) - maxima[i]);
                            const f32x16 probability = pair.select(hides, i, at, power * factors[i], 0);
                            const f32x16 upstream = load_floats(chunk.grads + place + 16 * i) * scale;
                            grads[half][i] = probability * (pair.keep(kept, i, half, upstream) - deltas[row + i]);
                            probabilities[half][i] = pair.keep(kept, i, half, probability * scale);
                            if (!PLAIN && pair.biases[i]) add_to_bias(block, pair.biases[i] + at, grads[half][i]);
                        }
                        const int64_t packed = (row / DEPTH<Op> * (num_keys / 16) + column / 16 + half) * TILE<Op> + row % DEPTH<Op> * 16;
                        store_rows_of_b(chunk.kept_b + packed, probabilities[half][0], probabilities[half][1]);
                        store_rows_of_b(chunk.grads_b + packed, grads[half][0], grads[half][1]);
                    }
                    Op *const to = chunk.grads_a + (row / 16 * (num_keys / DEPTH<Op>) + column / DEPTH<Op>) * TILE<Op> + row % 16 * DEPTH<Op>;
                    for (int i = 0; i < 2; ++i) store_row(to + i * DEPTH<Op>, grads[0][i], grads[1][i]);
                });
        }
    }

    // The gradient of sixteen biases.
    void add_to_bias(const Block &block, const float *biases, f32x16 grads) const {
        float *const own = problem.bias_grad + (block.sequence * problem.heads + block.head) * problem.bias_size;
        float *const to = own + (biases - problem.bias - block.head * problem.bias_size);
        store_floats(to, load_floats(to) + grads);
    }

    void operator()(int64_t sequence, int64_t kv_head, bool amx) const {
        const int64_t query_start = problem.start(sequence), length = problem.length(sequence), padded_queries = padded(length);
        const int64_t start = problem.key_start(sequence), keys_length = problem.num_keys(sequence), padded_length = padded(keys_length);
        const int64_t width = problem.width, padded_width = padded(width), size = padded_length * padded_width, query_size = padded_queries * padded_width;
        const int64_t depth = padded_width / DEPTH<Op>, block_size = BLOCK * std::min(padded_length, KEY_CHUNK);
        Op *a = workspace<Op>(0, size), *b = workspace<Op>(1, query_size);
        Op *keys_by_token = workspace<Op>(2, size), *keys_by_width = workspace<Op>(3, size), *values_by_width = workspace<Op>(4, size);
        Op *queries = workspace<Op>(5, query_size), *queries_across = workspace<Op>(6, query_size);
        Op *upstream = workspace<Op>(7, query_size), *upstream_across = workspace<Op>(8, query_size);
        float *grad_keys = workspace<float>(9, size), *grad_values = workspace<float>(10, size);
        float *grad_queries = workspace<float>(11, BLOCK * padded_width);
        const Chunk chunk{workspace<float>(12, block_size), workspace<float>(13, block_size), workspace<Op>(14, block_size),
                          workspace<Op>(15, block_size), workspace<Op>(16, block_size)};
        rows_to_a(v.at(start, kv_head), v.token_stride, keys_length, width, a);
        turn_tiles(a, size / TILE<Op>, values_by_width);
        rows_to_a(k.at(start, kv_head), k.token_stride, keys_length, width, a);
        turn_tiles(a, size / TILE<Op>, keys_by_width);
        a_to_b(a, padded_length, padded_width, keys_by_token);
        std::memset(grad_keys, 0, size_t(size) * sizeof(float));
        std::memset(grad_values, 0, size_t(size) * sizeof(float));
        const int64_t group = problem.heads / problem.kv_heads;
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
            rows_to_a(q.at(query_start, head), q.token_stride, length, width, queries);
            a_to_b(queries, padded_queries, padded_width, b);
            turn_tiles(b, query_size / TILE<Op>, queries_across);
            rows_to_a(grad.at(query_start, head), grad.token_stride, length, width, upstream);
            a_to_b(upstream, padded_queries, padded_width, b);
            turn_tiles(b, query_size / TILE<Op>, upstream_across);
            for (int64_t query = 0; query < length; query += BLOCK) {
                const Block block{problem, sequence, head, query};
                float deltas[BLOCK] = {}, factors[BLOCK];
                for (int64_t row = 0; row < block.rows; ++row) {
                    f32x16 products = {};
                    for (int64_t i = 0; i < width; i += 16)
                        products += load_floats(out.at(block.token + row, head) + i, width - i) * load_floats(grad.at(block.token + row, head) + i, width - i);
                    deltas[row] = sum(products);
                    factors[row] = problem.scale;
                }
                for (int64_t key = block.first_key; key < block.end_key; key += KEY_CHUNK) {
                    const int64_t num_keys = std::min(block.end_key - key, KEY_CHUNK);
                    const Product scores = {block.computed_rows(), num_keys, padded_width, {depth, 1}, {1, depth}, {num_keys / 16, 1}, false};
                    gemm(scores, queries + query * padded_width, keys_by_width + key * padded_width, chunk.scores, amx);
                    gemm(scores, upstream + query * padded_width, values_by_width + key * padded_width, chunk.grads, amx);
                    problem.is_plain() ? differentiate<true>(block, key, num_keys, deltas, chunk) : differentiate<false>(block, key, num_keys, deltas, chunk);
                    const Product across = {padded_width, num_keys, block.rows + block.rows % 2, {1, padded_width / 16}, {num_keys / 16, 1},
                                            {padded_length / 16, 1}, true};
                    const int64_t corner = key / 16 * TILE<float>;
                    gemm(across, upstream_across + query * padded_width, chunk.kept_b, grad_values + corner, amx);
                    gemm(across, queries_across + query * padded_width, chunk.grads_b, grad_keys + corner, amx);
                    gemm({block.computed_rows(), padded_width, block.computed_keys(key, num_keys), {num_keys / DEPTH<Op>, 1}, {padded_width / 16, 1},
                          {padded_width / 16, 1}, key > block.first_key}, chunk.grads_a, keys_by_token + key * padded_width, grad_queries, amx);
                }
                store_rows(grad_queries, block.rows, width, factors, grad_q.at(block.token, head), grad_q.token_stride);
            }
        }
        store_columns(grad_keys, keys_length, width, problem.scale, grad_k.at(start, kv_head), grad_k.token_stride);
        store_columns(grad_values, keys_length, width, 1.0f, grad_v.at(start, kv_head), grad_v.token_stride);
    }
};

#if defined(__AVX512BF16__)
template <typename T> using Operand = T;
#else
template <typename T> using Operand = float;
#endif

template <typename T> Matrix<T> matrix(void *data, const int64_t *strides, int64_t index) {
    return {static_cast<T *>(data), strides[2 * index], strides[2 * index + 1]};
}

template <typename T> void forward(const Problem &problem, void *const *tensors, const int64_t *strides, float *row_sums) {
    const Forward<T, Operand<T>> kernel{problem, matrix<const T>(tensors[0], strides, 0), matrix<const T>(tensors[1], strides, 1),
                                        matrix<const T>(tensors[2], strides, 2), matrix<T>(tensors[3], strides, 3), row_sums};
    parallel_tasks(problem.num_sequences * problem.heads, [&](int64_t task, bool amx) {
        kernel(problem.sequences[task / problem.heads], task % problem.heads, amx);
    });
}

template <typename T> void backward(const Problem &problem, void *const *tensors, const int64_t *strides, const float *row_sums) {
    const Backward<T, Operand<T>> kernel{problem,
                                         matrix<const T>(tensors[0], strides, 0),
                                         matrix<const T>(tensors[1], strides, 1),
                                         matrix<const T>(tensors[2], strides, 2),
                                         matrix<const T>(tensors[3], strides, 3),
                                         matrix<const T>(tensors[4], strides, 4),
                                         row_sums,
                                         matrix<T>(tensors[5], strides, 5),
                                         matrix<T>(tensors[6], strides, 6),
                                         matrix<T>(tensors[7], strides, 7)};
    parallel_tasks(problem.num_sequences * problem.kv_heads, [&](int64_t task, bool amx) {
        kernel(problem.sequences[task / problem.kv_heads], task % problem.kv_heads, amx);
    });
}

}  // namespace

// `strides`: of a token and of a head, in elements, for each tensor in turn. A query sees keys from `left` before it to `right` after.
// `bias`: null, or [heads, bias_size], that of a query and a key as far after it as an index is after bias_center; there are as many on either
// side as the longest sequence has tokens, and 64 more. `bias_grad`: [all sequences, heads, bias_size], which is added to.
extern "C" void attention_forward(void *q, void *k, void *v, void *out, float *row_sums, const int64_t *strides, const int32_t *boundaries,
                                  const int32_t *key_boundaries, const int32_t *sequences, int64_t num_sequences, int64_t heads, int64_t kv_heads,
                                  int64_t width, int64_t left, int64_t right, double scale, double dropout, int64_t seed, int64_t is_bf16,
                                  const float *bias, int64_t bias_size, int64_t bias_center) {
    const Problem problem{boundaries, key_boundaries, sequences, num_sequences, heads, kv_heads, width, left, right, float(scale),
                          Dropout(dropout, seed), bias, nullptr, bias_size, bias_center};
    void *const tensors[] = {q, k, v, out};
    is_bf16 ? forward<bf16>(problem, tensors, strides, row_sums) : forward<float>(problem, tensors, strides, row_sums);
}

extern "C" void attention_backward(void *q, void *k, void *v, void *out, void *grad, void *grad_q, void *grad_k, void *grad_v, const float *row_sums,
                                   const int64_t *strides, const int32_t *boundaries, const int32_t *key_boundaries, const int32_t *sequences,
                                   int64_t num_sequences, int64_t heads, int64_t kv_heads, int64_t width, int64_t left, int64_t right,
                                   double scale, double dropout, int64_t seed, int64_t is_bf16, const float *bias, int64_t bias_size,
                                   int64_t bias_center, float *bias_grad) {
    const Problem problem{boundaries, key_boundaries, sequences, num_sequences, heads, kv_heads, width, left, right, float(scale),
                          Dropout(dropout, seed), bias, bias_grad, bias_size, bias_center};
    void *const tensors[] = {q, k, v, out, grad, grad_q, grad_k, grad_v};
    is_bf16 ? backward<bf16>(problem, tensors, strides, row_sums) : backward<float>(problem, tensors, strides, row_sums);
}
