// Linear layers that read one input, with their adapters, in bf16.
#include "stacks.h"

#if WITH_PRODUCTS
#include <vector>

namespace {

struct Source {
    const bf16 *data;
    int64_t stride;
};

// to [rows, width] (+)= what dropout leaves of `from`.
void drop(Source from, bf16 *to, int64_t stride, int64_t rows, int64_t width, const Dropout &dropout, bool adds) {
    parallel_rows(rows, width, [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
            with_uniforms(dropout, row * width, width, [=](int64_t at, int64_t elements, const uint16_t *uniforms) {
                const bf16 *x = from.data + row * from.stride + at;
                bf16 *y = to + row * stride + at;
#pragma omp simd
                for (int64_t i = 0; i < elements; ++i) {
                    const float kept = rounded_to<bf16>(to_float(x[i]) * dropout.factor(uniforms[i]));
                    y[i] = from_float<bf16>(adds ? to_float(y[i]) + kept : kept);
                }
            });
    });
}

// Memory of one thread for what dropout leaves, kept for the next call.
bf16 *workspace(int64_t count) {
    thread_local std::vector<bf16> memory;
    if (int64_t(memory.size()) < count) memory.resize(count);
    return memory.data();
}

// body(layers as one, their input) for each part of a stack whose adapters read the same: all of them where nothing is dropped.
template <typename Body> void with_inputs(const Stack &stack, const bf16 *room, int64_t rows, const Draws &draws, const Body &body) {
    const Source x{room, stack.room()};
    if (!draws.p) return body(Layer{0, stack.out, 0, stack.ranks()}, x);
    bf16 *dropped = workspace(rows * stack.in);
    for (const Layer &layer : stack) {
        const int64_t number = &layer - stack.begin();
        if (draws.p[number]) drop(x, dropped, stack.in, rows, stack.in, Dropout(draws.p[number], draws.seeds[number]), false);
        body(layer, draws.p[number] ? Source{dropped, stack.in} : x);
    }
}

// The sums of the columns of x, in the order of its rows.
void sum_rows(Source x, int64_t rows, int64_t columns, float *sums) {
    constexpr int64_t WIDTH = 64;
    parallel_for((columns + WIDTH - 1) / WIDTH, std::max<int64_t>(1, 8192 / (rows * WIDTH + 1)), [=](int64_t begin, int64_t end) {
        for (int64_t first = begin * WIDTH; first < std::min(end * WIDTH, columns); first += WIDTH) {
            const int64_t width = std::min(WIDTH, columns - first);
            float found[WIDTH] = {};
            for (int64_t row = 0; row < rows; ++row) {
                const bf16 *from = x.data + row * x.stride + first;
#pragma omp simd
                for (int64_t i = 0; i < width; ++i) found[i] += to_float(from[i]);
            }
            std::memcpy(sums + first, found, size_t(width) * sizeof(float));
        }
    });
}

void clear_columns(bf16 *first, int64_t stride, int64_t rows, int64_t columns) {
    for (int64_t row = 0; columns > 0 && row < rows; ++row) std::memset(first + row * stride, 0, size_t(columns) * sizeof(bf16));
}

}  // namespace

// s A and B in their places, from each layer's A [rank, in] and B [out, rank], or null.
extern "C" void stack_place_adapters(const Stack *stack, const float *const *adapters) {
    for (const Layer &layer : *stack) {
        const int64_t number = &layer - stack->begin(), in = stack->in, rank = layer.rank, stride = stack->room();
        const float *a = adapters[2 * number], *b = adapters[2 * number + 1];
        if (!a) continue;
        const float scale = stack->scales[layer.first_rank];
        bf16 *const below = stack->below(layer), *const beside = stack->beside(layer);
        parallel_rows(rank, in, [=](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row)
#pragma omp simd
                for (int64_t i = 0; i < in; ++i) below[row * stride + i] = from_float<bf16>(a[row * in + i] * scale);
        });
        parallel_rows(layer.out, rank, [=](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row)
#pragma omp simd
                for (int64_t i = 0; i < rank; ++i) beside[row * stride + i] = from_float<bf16>(b[row * rank + i]);
        });
    }
}

void Linear::multiply(bf16 *room, int64_t rows, bf16 *outputs, int64_t outputs_stride) const {
    const int64_t stride = stack->room(), in = stack->in;
    if (stack->between) {
        clear_columns(room + in + stack->ranks(), stride, rows, stack->between - stack->ranks());
        with_inputs(*stack, room, rows, draws, [=](const Layer &layer, Source x) {
            product(x.data, stack->below(layer), room + in + layer.first_rank, nullptr, rows, layer.rank, in, x.stride, 1, 1, stride, stride, true, false);
        });
    }
    thread_local std::vector<float> bias;
    bias.assign(stack->bias ? stack->out : 0, 0);
    for (size_t i = 0; i < bias.size(); ++i) bias[i] = to_float(stack->bias[i]);
    product(room, stack->weight, outputs, stack->bias ? bias.data() : nullptr, rows, stack->out, stride, stride, 1, 1, stride, outputs_stride, true,
            false);
}

void Linear::differentiate(bf16 *grad_room, int64_t rows, bf16 *of_input) const {
    const int64_t stride = stack->room(), grad_stride = stack->grad_room(), in = stack->in, out = stack->out;
    if (stack->between) {
        clear_columns(grad_room + out + stack->ranks(), grad_stride, rows, stack->between - stack->ranks());
        for (const Layer &layer : *stack)  // not all at once: most of what stands beside the weights is zeros
            product(grad_room + layer.first_out, stack->beside(layer), grad_room + out + layer.first_rank, nullptr, rows, layer.rank, layer.out,
                    grad_stride, 1, stride, 1, grad_stride, true, false);
    }
    if (!of_input) return;
    product(grad_room, stack->weight, of_input, nullptr, rows, in, draws.p ? out : grad_stride, grad_stride, 1, stride, 1, in, true, false);
    if (!draws.p) return;
    bf16 *through = workspace(rows * in);
    for (const Layer &layer : *stack) {
        const int64_t number = &layer - stack->begin();
        product(grad_room + out + layer.first_rank, stack->below(layer), through, nullptr, rows, in, layer.rank, grad_stride, 1, stride, 1, in, true, false);
        drop({through, in}, of_input, in, rows, in, Dropout(draws.p[number], draws.seeds[number]), true);
    }
}

void Linear::of_parameters(const bf16 *room, const bf16 *grad_room, int64_t rows) const {
    const int64_t stride = stack->room(), grad_stride = stack->grad_room(), in = stack->in, out = stack->out;
    const Gradients &to = gradients;
    if (to.weight) product(grad_room, room, to.weight, nullptr, out, in, rows, 1, grad_stride, stride, 1, in, to.weight_is_bf16, false);
    if (to.bias) sum_rows({grad_room, grad_stride}, rows, out, to.bias);
    if (!to.a) return;
    with_inputs(*stack, room, rows, draws, [=](const Layer &layer, Source x) {
        float *const of_a = to.a + layer.first_rank * in;
        product(grad_room + out + layer.first_rank, x.data, of_a, nullptr, layer.rank, in, rows, 1, grad_stride, x.stride, 1, in, false, false);
        for (int64_t row = 0; row < layer.rank; ++row)
#pragma omp simd
            for (int64_t i = 0; i < in; ++i) of_a[row * in + i] *= stack->scales[layer.first_rank + row];
    });
    float *of_b = to.b;
    for (const Layer &layer : *stack) {
        product(grad_room + layer.first_out, room + in + layer.first_rank, of_b, nullptr, layer.out, layer.rank, rows, 1, grad_stride, stride, 1,
                layer.rank, false, false);
        of_b += layer.out * layer.rank;
    }
}

extern "C" void stack_multiply(const Linear *linear, bf16 *room, int64_t rows, bf16 *outputs) {
    linear->multiply(room, rows, outputs, linear->stack->out);
}
extern "C" void stack_differentiate(const Linear *linear, bf16 *grad_room, int64_t rows, bf16 *of_input) {
    linear->differentiate(grad_room, rows, of_input);
}
extern "C" void stack_of_parameters(const Linear *linear, const bf16 *room, const bf16 *grad_room, int64_t rows) {
    linear->of_parameters(room, grad_room, rows);
}
#endif
