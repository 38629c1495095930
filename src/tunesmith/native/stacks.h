// Linear layers that read one input, with their adapters, as kernels see them. What is computed of them, and what a room is, speed/stacks.py says.
#pragma once

#include "products.h"

struct Layer {
    int64_t first_out, out, first_rank, rank;  // its columns of the outputs, and of what is between
};

struct Stack {
    bf16 *weight;         // [out + between, in + between]: W, s A below it, B beside it
    const bf16 *bias;     // [out], or null
    const float *scales;  // s of each row of A
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

// Places for the gradients of parameters, those that are wanted: of W [out, in] in fp32 or bf16, and in fp32 of the bias [out], of A [ranks, in],
// and of each B [out, rank], one after the other.
struct Gradients {
    void *weight;
    int64_t weight_is_bf16;
    float *bias, *a, *b;
};

// A stack in a pass: native/structs.py fills it.
struct Linear {
    const Stack *stack;
    Draws draws;
    Gradients gradients;

    // y = [x, z] [W, B]' + bias, [rows, out], `stride` apart, of x in its room, beside which z = x s A' is written.
    void multiply(bf16 *room, int64_t rows, bf16 *outputs, int64_t stride) const;
    // [g, g B] [W; s A], [rows, in], from g in its room, beside which g B is written; only that where `of_input` is null.
    void differentiate(bf16 *grad_room, int64_t rows, bf16 *of_input) const;
    // Those that have a place, from x and g in their rooms as the two above leave them; x is not read for a bias alone.
    void of_parameters(const bf16 *room, const bf16 *grad_room, int64_t rows) const;
};
