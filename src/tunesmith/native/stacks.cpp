// Linear layers that read one input, with their adapters, in bf16: what speed/stacks.py computes of a stack, each in one call.
#include "products.h"

#if WITH_PRODUCTS
#include <vector>

namespace {

struct Layer {
    int64_t first_out, out, first_rank, rank;  // its columns of the outputs, and of what is between
};

struct Stack {
    bf16 *weight;      // [out + between, in + between]: W, s A below it, B beside it
    const bf16 *bias;  // or null
    int64_t in, out, between, num_layers;

    const Layer *begin() const { return reinterpret_cast<const Layer *>(this + 1); }
    const Layer *end() const { return begin() + num_layers; }
    int64_t ranks() const { return end()[-1].first_rank + end()[-1].rank; }
    int64_t room() const { return in + between; }        // of a row of the weights, or of an input
    int64_t grad_room() const { return out + between; }  // of a row of a gradient
    bf16 *below(const Layer &layer) const { return weight + (out + layer.first_rank) * room(); }
    bf16 *beside(const Layer &layer) const { return weight + layer.first_out * room() + in + layer.first_rank; }
};

// What the adapters' dropout draws: for each layer a probability and a seed, or nothing at all.
struct Draws {
    const double *p;
    const int64_t *seeds;
};

struct Rows {
    const bf16 *data;
    int64_t stride;
};

// to [rows, width] (+)= what dropout leaves of `from`.
void drop(Rows from, bf16 *to, int64_t stride, int64_t rows, int64_t width, const Dropout &dropout, bool adds) {
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
    const Rows x{room, stack.room()};
    if (!draws.p) return body(Layer{0, stack.out, 0, stack.ranks()}, x);
    bf16 *dropped = workspace(rows * stack.in);
    for (const Layer &layer : stack) {
        const int64_t number = &layer - stack.begin();
        if (draws.p[number]) drop(x, dropped, stack.in, rows, stack.in, Dropout(draws.p[number], draws.seeds[number]), false);
        body(layer, draws.p[number] ? Rows{dropped, stack.in} : x);
    }
}

// The sums of the columns of x, in the order of its rows.
void sum_rows(Rows x, int64_t rows, int64_t columns, float *sums) {
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

// s A and B in their places, from each layer's A [rank, in] and B [out, rank], or null, and s.
extern "C" void stack_place_adapters(const Stack *stack, const float *const *adapters, const double *scaling) {
    for (const Layer &layer : *stack) {
        const int64_t number = &layer - stack->begin(), in = stack->in, rank = layer.rank, stride = stack->room();
        const float *a = adapters[2 * number], *b = adapters[2 * number + 1], scale = float(scaling[number]);
        if (!a) continue;
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

// y = [x, z] [W, B]' + bias, [rows, out], of x in its room, beside which z = x s A' is written.
extern "C" void stack_multiply(const Stack *stack, bf16 *room, int64_t rows, bf16 *outputs, const double *p, const int64_t *seeds) {
    const int64_t stride = stack->room(), in = stack->in;
    if (stack->between) {
        clear_columns(room + in + stack->ranks(), stride, rows, stack->between - stack->ranks());
        with_inputs(*stack, room, rows, {p, seeds}, [=](const Layer &layer, Rows x) {
            product(x.data, stack->below(layer), room + in + layer.first_rank, nullptr, rows, layer.rank, in, x.stride, 1, 1, stride, stride, true, false);
        });
    }
    thread_local std::vector<float> bias;
    bias.assign(stack->bias ? stack->out : 0, 0);
    for (size_t i = 0; i < bias.size(); ++i) bias[i] = to_float(stack->bias[i]);
    product(room, stack->weight, outputs, stack->bias ? bias.data() : nullptr, rows, stack->out, stride, stride, 1, 1, stride, stack->out, true, false);
}

// [g, g B] [W; s A], [rows, in], from g in its room, beside which g B is written; only that where `of_input` is null.
extern "C" void stack_differentiate(const Stack *stack, bf16 *grad_room, int64_t rows, bf16 *of_input, const double *p, const int64_t *seeds) {
    const int64_t stride = stack->room(), grad_stride = stack->grad_room(), in = stack->in, out = stack->out;
    if (stack->between) {
        clear_columns(grad_room + out + stack->ranks(), grad_stride, rows, stack->between - stack->ranks());
        for (const Layer &layer : *stack)
            product(grad_room + layer.first_out, stack->beside(layer), grad_room + out + layer.first_rank, nullptr, rows, layer.rank, layer.out,
                    grad_stride, 1, stride, 1, grad_stride, true, false);
    }
    if (!of_input) return;
    product(grad_room, stack->weight, of_input, nullptr, rows, in, p ? out : grad_stride, grad_stride, 1, stride, 1, in, true, false);
    if (!p) return;
    bf16 *through = workspace(rows * in);
    for (const Layer &layer : *stack) {
        const int64_t number = &layer - stack->begin();
        product(grad_room + out + layer.first_rank, stack->below(layer), through, nullptr, rows, in, layer.rank, grad_stride, 1, stride, 1, in, true, false);
        drop({through, in}, of_input, in, rows, in, Dropout(p[number], seeds[number]), true);
    }
}

// The gradients of parameters, those that are not null: of W [out, in] in fp32 or bf16, and in fp32 of the bias [out], of A [ranks, in], times
// `scales` [ranks], and of each B [out, rank], one after the other; from x and g in their rooms as the two above leave them.
extern "C" void stack_of_parameters(const Stack *stack, const bf16 *room, const bf16 *grad_room, int64_t rows, void *of_weight, int64_t weight_is_bf16,
                                    float *of_bias, float *of_a, float *of_b, const float *scales, const double *p, const int64_t *seeds) {
    const int64_t stride = stack->room(), grad_stride = stack->grad_room(), in = stack->in, out = stack->out;
    if (of_weight) product(grad_room, room, of_weight, nullptr, out, in, rows, 1, grad_stride, stride, 1, in, weight_is_bf16, false);
    if (of_bias) sum_rows({grad_room, grad_stride}, rows, out, of_bias);
    if (!of_a) return;
    with_inputs(*stack, room, rows, {p, seeds}, [=](const Layer &layer, Rows x) {
        float *const to = of_a + layer.first_rank * in;
        product(grad_room + out + layer.first_rank, x.data, to, nullptr, layer.rank, in, rows, 1, grad_stride, x.stride, 1, in, false, false);
        for (int64_t row = 0; row < layer.rank; ++row)
#pragma omp simd
            for (int64_t i = 0; i < in; ++i) to[row * in + i] *= scales[layer.first_rank + row];
    });
    for (const Layer &layer : *stack) {
        product(grad_room + layer.first_out, room + in + layer.first_rank, of_b, nullptr, layer.out, layer.rank, rows, 1, grad_stride, stride, 1,
                layer.rank, false, false);
        of_b += layer.out * layer.rank;
    }
}
#endif
