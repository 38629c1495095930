// What attention is asked for: sequences that lie end to end, which keys a query sees, and how softmax and its gradient go through scores.
#pragma once

#include "tiles.h"

#include <type_traits>

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

    bool is_plain() const { return !bias && !dropout.threshold; }
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

// Two rows of a block, the second of which may be one of padding, 32 keys at a time. What PLAIN rows have is neither biased nor dropped.
template <bool PLAIN> struct Pair {
    const Block &block;
    int64_t row;
    uint32_t begin[2] = {}, count[2] = {};  // a row sees keys [begin, begin + count)
    const float *biases[2] = {};            // of the key 0
    float scale;

    INLINE Pair(const Block &block, int64_t row) : block(block), row(row), scale(block.problem.scale * LOG2_E) {
        const Problem &problem = block.problem;
        for (int i = 0; i < 2 && row + i < block.rows; ++i) {
            const int64_t query = block.query + row + i, first = std::max<int64_t>(query - problem.left, 0);
            begin[i] = uint32_t(first);
            count[i] = uint32_t(std::min(query + problem.right + 1, block.keys) - first);
            if (!PLAIN && problem.bias) biases[i] = problem.bias_of(block.head, query);
        }
    }

    // Sixteen scores of a row as powers of two have them in softmax.
    INLINE f32x16 exponents(int i, const float *scores, int64_t key) const {
        const f32x16 values = load_floats(scores) * scale;
        return !PLAIN && biases[i] ? values + load_floats(biases[i] + key) * LOG2_E : values;
    }

    // The values of the keys [key, key + 16) that a row sees, and `other` for those it does not.
    template <typename Hides> INLINE f32x16 select(Hides, int i, int64_t key, f32x16 values, float other) const {
        return Hides::value ? select_below(uint32_t(key) - begin[i], count[i], values, other) : values;
    }

    // body(whether some of [key, key + 32) are hidden from a row, as a constant's type)
    template <typename Body> INLINE void visit(int64_t key, const Body &body) const {
        bool sees_all = true;
        for (int i = 0; i < 2; ++i) sees_all &= key >= int64_t(begin[i]) && key + BLOCK <= int64_t(begin[i]) + int64_t(count[i]);
        if (sees_all)
            body(std::false_type());
        else
            body(std::true_type());
    }

    INLINE f32x16 keep(const Kept &kept, int i, int half, f32x16 values) const { return PLAIN ? values : kept.select(i, half, values); }
};

// ---- to operands: 32 columns of a row of an A, two rows and 16 columns of a B ----

INLINE void store_row(float *to, f32x16 first, f32x16 second) {
    store_floats(to, first);
    store_floats(to + TILE<float>, second);
}
INLINE void store_rows_of_b(float *to, f32x16 first, f32x16 second) {
    store_floats(to, first);
    store_floats(to + 16, second);
}
#if defined(__AVX512BF16__)
INLINE __m512i rounded_pair(f32x16 first, f32x16 second) { return (__m512i)_mm512_cvtne2ps_pbh((__m512)second.part[0], (__m512)first.part[0]); }
INLINE void store_row(bf16 *to, f32x16 first, f32x16 second) { store(to, rounded_pair(first, second)); }
INLINE void store_rows_of_b(bf16 *to, f32x16 first, f32x16 second) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                           23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    store(to, _mm512_permutexvar_epi16(order, rounded_pair(first, second)));
}
#endif
