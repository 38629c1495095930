// Cross-entropy of rows of logits, and its gradient written over them: a row stays in the cache for all its passes.
#include "native.h"

struct Head {
    float scale, softcap;
    // What the model makes of the output of its head, and the slope of that.
    INLINE float value(float raw) const { return softcap ? softcap * fast_tanh(raw * scale / softcap) : raw * scale; }
    INLINE float slope(float value) const { return softcap ? scale * (1.0f - (value / softcap) * (value / softcap)) : scale; }
};

template <bool BENT, typename T>
static void score(T *logits, const int64_t *targets, float *losses, uint8_t *correct, int64_t rows, int64_t columns, int64_t stride, Head head,
                  bool with_grad) {
    parallel_rows(rows, columns, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            T *x = logits + row * stride;
            const auto value = [=](float raw) { return BENT ? head.value(raw) : raw; };
            float largest = -INFINITY, sum = 0;
#pragma omp simd reduction(max : largest)
            for (int64_t i = 0; i < columns; ++i) largest = std::max(largest, value(to_float(x[i])));
            const float most = largest * LOG2_E;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < columns; ++i) sum += fast_exp2_of_negative(value(to_float(x[i])) * LOG2_E - most);
            const float log_sum = largest + std::log(sum), target = value(to_float(x[targets[row]]));
            losses[row] = log_sum - target;
            correct[row] = target >= largest;
            if (!with_grad) continue;
            const float at_target = std::exp(target - log_sum) - 1.0f, all = log_sum * LOG2_E;
#pragma omp simd
            for (int64_t i = 0; i < columns; ++i) {
                const float bent = value(to_float(x[i]));
                x[i] = from_float<T>(fast_exp2_of_negative(bent * LOG2_E - all) * (BENT ? head.slope(bent) : 1.0f));
            }
            x[targets[row]] = from_float<T>(at_target * (BENT ? head.slope(target) : 1.0f));
        }
    });
}

#define KERNEL(NAME, T)                                                                                                   \
    extern "C" void token_loss_##NAME(T *logits, const int64_t *targets, float *losses, uint8_t *correct, int64_t rows,   \
                                      int64_t columns, int64_t stride, double scale, double softcap, int64_t with_grad) { \
        const Head head{float(scale), float(softcap)};                                                                    \
        if (scale != 1.0 || softcap != 0.0)                                                                               \
            score<true>(logits, targets, losses, correct, rows, columns, stride, head, with_grad);                        \
        else                                                                                                              \
            score<false>(logits, targets, losses, correct, rows, columns, stride, head, with_grad);                       \
    }
KERNEL(fp32, float)
KERNEL(bf16, bf16)
