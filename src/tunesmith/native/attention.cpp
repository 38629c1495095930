// Attention within sequences that lie end to end: scores, softmax, dropout and their gradients, a (sequence, head) at a time. Keys are tokens
// of the same sequences, or those of others, one for each.
//
// Sums, softmax and its gradient are fp32. A task is one head (of keys, in the gradient) of one sequence and shares nothing with others, so
// the bits do not depend on the threads. Of a block of 32 queries, scores against all its keys are held in the cache, never in memory.
#include "tiles.h"

#include <atomic>
#include <cstdlib>
#include <limits>
#include <memory>

namespace {

constexpr int64_t KEY_CHUNK = 256;  // keys at a time in the gradient: what is kept of a block then stays near the first-level cache

template <typename T> struct Matrix {  // [tokens, heads, width]
    T *data;
    int64_t token_stride, head_stride;
    T *at(int64_t token, int64_t head) const { return data + token * token_stride + head * head_stride; }
};

struct Problem {
    const int32_t *boundaries, *key_boundaries, *sequences;
    int64_t num_sequences, heads, kv_heads, width, left, right;
    float scale;
    Dropout dropout;
    const float *bias;  // what is added to scaled scores, for each head by the distance from query to key; null for nothing
    float *bias_grad;   // of each sequence and head
    int64_t bias_size, bias_center;

    // Of a query and the key 0.
    const float *bias_of(int64_t head, int64_t query) const { return bias + head * bias_size + bias_center - query; }
    int64_t start(int64_t sequence) const { return boundaries[sequence]; }
    int64_t length(int64_t sequence) const { return boundaries[sequence + 1] - boundaries[sequence]; }
    int64_t key_start(int64_t sequence) const { return key_boundaries[sequence]; }
    int64_t num_keys(int64_t sequence) const { return key_boundaries[sequence + 1] - key_boundaries[sequence]; }
};

// Up to 32 queries of one head of a sequence, and the keys that at least one of them sees, in whole blocks.
struct Block {
    const Problem &problem;
    int64_t sequence, head, query;
    int64_t rows = std::min(BLOCK, problem.length(sequence) - query);
    int64_t token = problem.start(sequence) + query, keys = problem.num_keys(sequence);
    int64_t first_key = std::max<int64_t>(query - problem.left, 0) / BLOCK * BLOCK;
    int64_t end_key = padded(std::min(query + rows + problem.right, keys));
    int64_t computed_rows() const { return (rows + 7) / 8 * 8; }
    // Of the keys from one on, those that may be seen, and one more where their number is odd.
    int64_t computed_keys(int64_t key, int64_t count) const { return (std::min(keys - key, count) + 1) / 2 * 2; }
};

// The keys that a query sees: [begin, begin + count); none for a row of padding.
struct Span {
    uint32_t begin = 0, count = 0;
    Span(const Block &block, int64_t row) {
        if (row >= block.rows) return;
        const int64_t query = block.query + row, first = std::max<int64_t>(query - block.problem.left, 0);
        begin = uint32_t(first);
        count = uint32_t(std::min(query + block.problem.right + 1, block.keys) - first);
    }
    // Values of the keys [key, key + 16), with `other` for those outside.
    INLINE f32x16 select(int64_t key, f32x16 values, float other) const {
        return select_below(uint32_t(key) - begin, count, values, other);
    }
};

// Sixteen scores of a row as they go into softmax; `bias` is null or lies beside them.
INLINE f32x16 scaled(const float *scores, float scale, const float *bias) {
    const f32x16 values = load_floats(scores) * scale;
    return bias ? values + load_floats(bias) : values;
}

// What dropout keeps of rows 2 pair and 2 pair + 1 of a block and 32 keys.
struct Kept {
    alignas(64) uint16_t uniforms[GROUP];
    int32_t threshold;
    INLINE Kept(const Block &block, int64_t pair, int64_t key) : threshold(int32_t(block.problem.dropout.threshold)) {
        const Problem &problem = block.problem;
        const uint64_t rows = uint64_t(problem.start(block.sequence) / 2 + block.sequence + block.query / 2 + pair);
        if (threshold) draw_group(problem.dropout.seed, (rows * problem.heads + block.head) << 20 | uint64_t(key / BLOCK), uniforms);
    }
    INLINE f32x16 select(int row, int half, f32x16 values) const {
        return threshold ? select_at_least(uniforms + 32 * row + 16 * half, threshold, values) : values;
    }
};

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
    float *row_sums;  // [tokens, heads, 2]: the largest scaled score of a row, and the sum of exponentials of what the others are below it

    // From scores (a C) to numerators before division (an A); `sums` of each row of them, before dropout.
    void softmax(const Block &block, float *scores, Op *numerators, float *sums) const {
        const int64_t num_keys = block.end_key - block.first_key, num_tiles = num_keys / 16;
        for (int64_t row = 0; row < block.rows; row += 2) {  // what the others hold is multiplied and not stored
            const Span spans[2] = {{block, row}, {block, row + 1}};
            const float *biases[2] = {};
            for (int i = 0; problem.bias && i < 2; ++i) biases[i] = problem.bias_of(block.head, block.query + row + i) + block.first_key;
            float *const from = scores + row / 16 * num_tiles * TILE<float> + row % 16 * 16;
            f32x16 most[2] = {splat(-std::numeric_limits<float>::infinity()), splat(-std::numeric_limits<float>::infinity())};
            for (int64_t tile = 0; tile < num_tiles; ++tile)
                for (int i = 0; i < 2; ++i) {
                    const f32x16 score = scaled(from + tile * TILE<float> + 16 * i, problem.scale, biases[i] ? biases[i] + 16 * tile : nullptr);
                    most[i] = larger(most[i], spans[i].select(block.first_key + 16 * tile, score, -std::numeric_limits<float>::infinity()));
                }
            float maxima[2];
            for (int i = 0; i < 2; ++i) maxima[i] = spans[i].count ? largest(most[i]) : 0;
            f32x16 totals[2] = {};
            for (int64_t tile = 0; tile < num_tiles; tile += 2) {
                const int64_t key = block.first_key + 16 * tile;
                const Kept kept(block, row / 2, key);
                for (int i = 0; i < 2; ++i)
                    for (int half = 0; half < 2; ++half) {
                        const float *const bias = biases[i] ? biases[i] + 16 * (tile + half) : nullptr;
                        const f32x16 score = scaled(from + (tile + half) * TILE<float> + 16 * i, problem.scale, bias);
                        const f32x16 power = spans[i].select(key + 16 * half, exp_of_negative(score - maxima[i]), 0);
                        totals[i] += power;
                        const int64_t column = 16 * (tile + half);
                        Op *const to = numerators + (row / 16 * (num_keys / DEPTH<Op>) + column / DEPTH<Op>) * TILE<Op>;
                        store_floats(to + (row % 16 + i) * DEPTH<Op> + column % DEPTH<Op>, kept.select(i, half, power));
                    }
            }
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
            softmax(block, scores, numerators, factors);
            for (int64_t row = 0; row < block.rows; ++row) factors[row] = (problem.dropout.threshold ? problem.dropout.scale : 1) / factors[row];
            gemm({block.computed_rows(), padded_width, block.computed_keys(block.first_key, num_keys), {num_keys / DEPTH<Op>, 1},
                  {padded_width / 16, 1}, {padded_width / 16, 1}, false}, numerators, values + block.first_key * padded_width, result, amx);
            store_rows(result, block.rows, width, factors, out.at(block.token, head), out.token_stride);
        }
    }
};

// ---- gradient ----

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
    void differentiate(const Block &block, int64_t key, int64_t num_keys, const float *deltas, const Chunk &chunk) const {
#if WITH_AMX  // which multiplies whole tiles
        for (int64_t row = block.rows + block.rows % 2; row < BLOCK; row += 2)
            for (int64_t column = 0; column < num_keys; column += 16) {
                const int64_t packed = (row / DEPTH<Op> * (num_keys / 16) + column / 16) * TILE<Op> + row % DEPTH<Op> * 16;
                store_pair(chunk.kept_b + packed, f32x16{}, f32x16{});
                store_pair(chunk.grads_b + packed, f32x16{}, f32x16{});
            }
#endif
        for (int64_t row = 0; row < block.rows; row += 2) {
            const Span spans[2] = {{block, row}, {block, row + 1}};
            float maxima[2] = {}, factors[2] = {};
            const float *biases[2] = {};
            for (int i = 0; problem.bias && i < 2; ++i) biases[i] = problem.bias_of(block.head, block.query + row + i) + key;
            float *const bias_grads = problem.bias_grad + (block.sequence * problem.heads + block.head) * problem.bias_size;
            for (int i = 0; i < 2 && row + i < block.rows; ++i) {
                const float *const both = row_sums + 2 * ((block.token + row + i) * problem.heads + block.head);
                maxima[i] = both[0];
                factors[i] = 1 / both[1];
            }
            for (int64_t column = 0; column < num_keys; column += 32) {
                const Kept kept(block, row / 2, key + column);
                for (int half = 0; half < 2; ++half) {
                    const int64_t tile = column / 16 + half, place = (row / 16 * (num_keys / 16) + tile) * TILE<float> + row % 16 * 16;
                    f32x16 probabilities[2], grads[2];
                    for (int i = 0; i < 2; ++i) {
                        const float *const bias = biases[i] ? biases[i] + 16 * tile : nullptr;
                        const f32x16 power = exp_of_negative(scaled(chunk.scores + place + 16 * i, problem.scale, bias) - maxima[i]);
                        const f32x16 probability = spans[i].select(key + 16 * tile, power * factors[i], 0);
                        const f32x16 upstream = load_floats(chunk.grads + place + 16 * i);
                        const float scale = problem.dropout.threshold ? problem.dropout.scale : 1;
                        grads[i] = probability * (kept.select(i, half, upstream * scale) - deltas[row + i]);
                        probabilities[i] = kept.select(i, half, probability * scale);
                        if (bias) {
                            float *const to = bias_grads + (bias - problem.bias - block.head * problem.bias_size);
                            store_floats(to, load_floats(to) + grads[i]);
                        }
                        Op *const to = chunk.grads_a + (row / 16 * (num_keys / DEPTH<Op>) + 16 * tile / DEPTH<Op>) * TILE<Op>;
                        store_floats(to + (row % 16 + i) * DEPTH<Op> + 16 * tile % DEPTH<Op>, grads[i]);
                    }
                    const int64_t packed = (row / DEPTH<Op> * (num_keys / 16) + tile) * TILE<Op> + row % DEPTH<Op> * 16;
                    store_pair(chunk.kept_b + packed, probabilities[0], probabilities[1]);
                    store_pair(chunk.grads_b + packed, grads[0], grads[1]);
                }
            }
        }
    }

    // Two rows of a B.
    static INLINE void store_pair(float *to, f32x16 first, f32x16 second) {
        store_floats(to, first);
        store_floats(to + 16, second);
    }
#if defined(__AVX512BF16__)
    static INLINE void store_pair(bf16 *to, f32x16 first, f32x16 second) {
        store(to, side_by_side((PartH)_mm512_cvtneps_pbh((__m512)first.part[0]), (PartH)_mm512_cvtneps_pbh((__m512)second.part[0])));
    }
#endif

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
                    differentiate(block, key, num_keys, deltas, chunk);
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
