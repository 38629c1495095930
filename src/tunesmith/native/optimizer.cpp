// AdamW in one pass over many tensors, and the norm of their gradients.
#include <vector>

#include "native.h"

// body(tensor, begin, end) over the items of all tensors laid end to end, in equal shares.
template <typename Body> static void over_tensors(const int64_t *sizes, int64_t tensors, int64_t grain, const Body &body) {
    std::vector<int64_t> ends(size_t(tensors), 0);
    int64_t total = 0;
    for (int64_t tensor = 0; tensor < tensors; ++tensor) ends[size_t(tensor)] = total += sizes[tensor];
    parallel_for(total, grain, [&](int64_t begin, int64_t end) {
        auto tensor = std::upper_bound(ends.begin(), ends.end(), begin) - ends.begin();
        for (; begin < end; ++tensor) {
            const int64_t start = ends[size_t(tensor)] - sizes[tensor], stop = std::min(end, ends[size_t(tensor)]);
            if (begin < stop) body(int64_t(tensor), begin - start, stop - start);
            begin = stop;
        }
    });
}

struct AdamW {
    float decay, rate1, beta2, rate2, eps, step_size, root_correction, grad_scale;
};

// torch.optim.AdamW's formulas in its order; `copy` is the parameter again, rounded.
template <bool COPIES>
static void adamw(float *param, const float *grad, float *exp_avg, float *exp_avg_sq, bf16 *copy, int64_t count, const AdamW a) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        const float g = grad[i] * a.grad_scale;
        const float m = exp_avg[i] + (g - exp_avg[i]) * a.rate1;
        const float v = exp_avg_sq[i] * a.beta2 + a.rate2 * g * g;
        exp_avg[i] = m;
        exp_avg_sq[i] = v;
        const float p = param[i] * a.decay - a.step_size * m / (std::sqrt(v) / a.root_correction + a.eps);
        param[i] = p;
        if (COPIES) copy[i] = from_float<bf16>(p);
    }
}

// A null pointer among `copies` is a parameter of which none is wanted.
extern "C" void adamw_step(float *const *params, const float *const *grads, float *const *exp_avgs, float *const *exp_avg_sqs,
                           bf16 *const *copies, const int64_t *sizes, int64_t tensors, double lr, double beta1, double beta2,
                           double eps, double weight_decay, int64_t step, double grad_scale) {
    const double correction1 = 1 - std::pow(beta1, double(step)), correction2 = 1 - std::pow(beta2, double(step));
    const AdamW a{float(1 - lr * weight_decay), float(1 - beta1),       float(beta2),                  float(1 - beta2), float(eps),
                  float(lr / correction1),      float(std::sqrt(correction2)), float(grad_scale)};
    over_tensors(sizes, tensors, 16384, [=](int64_t tensor, int64_t begin, int64_t end) {
        const auto run = copies[tensor] ? adamw<true> : adamw<false>;
        run(params[tensor] + begin, grads[tensor] + begin, exp_avgs[tensor] + begin, exp_avg_sqs[tensor] + begin, copies[tensor] + begin,
            end - begin, a);
    });
}

// out[0] = the sum of the squares of all elements, in blocks that do not depend on the threads.
template <typename T> static void sum_of_squares(const T *const *tensors, const int64_t *sizes, int64_t count, double *out) {
    constexpr int64_t BLOCK = 4096;
    std::vector<int64_t> blocks(size_t(count), 0);
    int64_t total = 0;
    for (int64_t tensor = 0; tensor < count; ++tensor) total += blocks[size_t(tensor)] = (sizes[tensor] + BLOCK - 1) / BLOCK;
    std::vector<double> sums(size_t(total), 0.0);
    std::vector<int64_t> starts(size_t(count), 0);
    for (int64_t tensor = 1; tensor < count; ++tensor)
        starts[size_t(tensor)] = starts[size_t(tensor - 1)] + blocks[size_t(tensor - 1)];
    over_tensors(blocks.data(), count, 4, [&](int64_t tensor, int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
            const T *from = tensors[tensor] + block * BLOCK;
            const int64_t elements = std::min(BLOCK, sizes[tensor] - block * BLOCK);
            double sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < elements; ++i) sum += double(to_float(from[i])) * double(to_float(from[i]));
            sums[size_t(starts[size_t(tensor)] + block)] = sum;
        }
    });
    out[0] = 0;
    for (const double sum : sums) out[0] += sum;
}

extern "C" void sum_of_squares_fp32(const float *const *tensors, const int64_t *sizes, int64_t count, double *out) {
    sum_of_squares(tensors, sizes, count, out);
}
extern "C" void sum_of_squares_bf16(const bf16 *const *tensors, const int64_t *sizes, int64_t count, double *out) {
    sum_of_squares(tensors, sizes, count, out);
}
