// Blocks of encoders that normalise sums, and their gradients: all that stands between the hidden states before a block and those after it.
#include "blocks.h"

#if WITH_PRODUCTS

namespace {

// norm(residual + dropout(x))
struct Norm {
    const float *weight, *bias;
    double eps, p;
    int64_t seed;
    float *of_weight, *of_bias;  // or null
};

// A pass through a block: native/structs.py fills it.
struct EncoderPass {
    Linear queries, keys, attended, up, down;  // without a stack for keys, that of queries makes keys and values too, of the same tokens
    Attention attention;
    Norm middle, last;
    void (*activate)(const bf16 *x, bf16 *y, int64_t rows, int64_t width, int64_t x_stride, int64_t y_stride);
    void (*activate_backward)(const bf16 *x, const bf16 *grad, bf16 *grad_x, int64_t rows, int64_t width, int64_t x_stride, int64_t grad_stride,
                              int64_t grad_x_stride);
    int64_t rows, num_given;            // tokens, and those that they read
    const float *hidden;                // [rows, width]
    bf16 *x;                            // what they read, [num_given, width], in its room
    char *kept, *temporary;             // as long as encoder_block_sizes says; the first is for the gradient
    float *output;                      // [rows, width]
    bf16 *output_x;                     // the same rounded, for the block after it; or null
    int64_t output_x_stride;
    const float *grad;                  // that of the output
    float *of_hidden;                   // that of the hidden states, without what comes by way of x if that is of others or not wanted
    bf16 *of_given;                     // that of what is given where this is others; or null
    int64_t needs_hidden, needs_projections;

    int64_t width() const { return attended.stack->out; }
    bool has_keys() const { return keys.stack; }
};

// Queries, keys, values and what is activated lie in the rooms of their gradients, which are written over them.
struct Kept {
    bf16 *own_x, *queries, *keys, *attended, *middle_x, *inner, *activated;
    float *row_sums, *sums[2], *means[2], *rstds[2];  // of both norms

    Kept(const EncoderPass &pass, Arena &arena) {
        const int64_t rows = pass.rows;
        own_x = pass.has_keys() ? arena.take<bf16>(rows * pass.queries.stack->room()) : pass.x;
        queries = arena.take<bf16>(rows * pass.queries.stack->grad_room());
        keys = pass.has_keys() ? arena.take<bf16>(pass.num_given * pass.keys.stack->grad_room()) : nullptr;
        attended = arena.take<bf16>(rows * pass.attended.stack->room());
        middle_x = arena.take<bf16>(rows * pass.up.stack->room());
        inner = arena.take<bf16>(rows * pass.up.stack->grad_room());
        activated = arena.take<bf16>(rows * pass.down.stack->room());
        row_sums = arena.take<float>(rows * pass.attention.heads * 2);
        for (int i = 0; i < 2; ++i) {
            sums[i] = arena.take<float>(rows * pass.width());
            means[i] = arena.take<float>(rows);
            rstds[i] = arena.take<float>(rows);
        }
    }
    void projected(const EncoderPass &pass, Rows (&parts)[3]) const {
        pass.attention.split({queries, pass.queries.stack->grad_room()}, {keys, pass.has_keys() ? pass.keys.stack->grad_room() : 0}, parts);
    }
    Rows out(const EncoderPass &pass) const { return {attended, pass.attended.stack->room()}; }
};

struct Forward {
    bf16 *outputs;  // of a linear layer before a norm
    float *middle;

    Forward(const EncoderPass &pass, Arena &arena) {
        outputs = arena.take<bf16>(pass.rows * pass.width());
        middle = arena.take<float>(pass.rows * pass.width());
    }
};

struct Backward {
    bf16 *of_down, *of_activated, *of_middle_x, *of_attended, *of_out, *of_x;  // of outputs: in their rooms
    float *of_middle;

    Backward(const EncoderPass &pass, Arena &arena) {
        const int64_t rows = pass.rows, width = pass.width();
        of_down = arena.take<bf16>(rows * pass.down.stack->grad_room());
        of_activated = arena.take<bf16>(rows * pass.down.stack->in);
        of_middle_x = arena.take<bf16>(rows * width);
        of_middle = arena.take<float>(rows * width);
        of_attended = arena.take<bf16>(rows * pass.attended.stack->grad_room());
        of_out = arena.take<bf16>(rows * pass.attended.stack->in);
        of_x = of_middle_x;  // which nobody reads any more
    }
};

}  // namespace

extern "C" int64_t encoder_pass_size() { return sizeof(EncoderPass); }

// In bytes: what is kept, and what a pass and its gradient want besides.
extern "C" void encoder_block_sizes(const EncoderPass *pass, int64_t *sizes) {
    Arena kept(nullptr), forward(nullptr), backward(nullptr);
    Kept(*pass, kept), Forward(*pass, forward), Backward(*pass, backward);
    sizes[0] = kept.size();
    sizes[1] = forward.size();
    sizes[2] = backward.size();
}

extern "C" void encoder_block_forward(const EncoderPass *given) {
    const EncoderPass &pass = *given;
    const int64_t rows = pass.rows, width = pass.width(), inner = pass.up.stack->out;
    Arena of_kept(pass.kept), of_temporary(pass.temporary);
    const Kept kept(pass, of_kept);
    const Forward room(pass, of_temporary);
    if (pass.has_keys()) {
        round_rows(pass.hidden, {kept.own_x, pass.queries.stack->room()}, rows, width);
        pass.keys.multiply(pass.x, pass.num_given, kept.keys, pass.keys.stack->grad_room());
    }
    pass.queries.multiply(kept.own_x, rows, kept.queries, pass.queries.stack->grad_room());
    Rows projected[3];
    kept.projected(pass, projected);
    pass.attention.forward(projected, kept.out(pass), kept.row_sums);
    const auto normalise = [&](const Norm &norm, int which, const float *residual, float *to, bf16 *rounded, int64_t stride) {
        layer_norm_bf16_fp32(room.outputs, residual, norm.weight, norm.bias, kept.sums[which], to, rounded, stride, kept.means[which],
                             kept.rstds[which], rows, width, norm.eps, norm.p, norm.seed);
    };
    pass.attended.multiply(kept.attended, rows, room.outputs, width);
    normalise(pass.middle, 0, pass.hidden, room.middle, kept.middle_x, pass.up.stack->room());
    pass.up.multiply(kept.middle_x, rows, kept.inner, pass.up.stack->grad_room());
    pass.activate(kept.inner, kept.activated, rows, inner, pass.up.stack->grad_room(), pass.down.stack->room());
    pass.down.multiply(kept.activated, rows, room.outputs, width);
    normalise(pass.last, 1, room.middle, pass.output, pass.output_x, pass.output_x_stride);
}

extern "C" void encoder_block_backward(const EncoderPass *given) {
    const EncoderPass &pass = *given;
    const int64_t rows = pass.rows, width = pass.width(), inner = pass.up.stack->out;
    Arena of_kept(pass.kept), of_temporary(pass.temporary);
    const Kept kept(pass, of_kept);
    const Backward room(pass, of_temporary);
    const auto normalise_backward = [&](const Norm &norm, int which, const float *grad, const bf16 *more, float *of_sum, bf16 *of_x, int64_t stride) {
        layer_norm_backward_bf16_fp32(kept.sums[which], norm.weight, kept.means[which], kept.rstds[which], grad, more, width, of_sum, of_x, stride,
                                      norm.of_weight, norm.of_bias, rows, width, norm.p, norm.seed);
    };
    normalise_backward(pass.last, 1, pass.grad, nullptr, room.of_middle, room.of_down, pass.down.stack->grad_room());
    pass.down.differentiate(room.of_down, rows, room.of_activated);
    pass.down.of_parameters(kept.activated, room.of_down, rows);
    bf16 *const of_up = kept.inner, *const of_queries = kept.queries, *const of_keys = kept.keys;
    const int64_t up_stride = pass.up.stack->grad_room();
    pass.activate_backward(kept.inner, room.of_activated, of_up, rows, inner, up_stride, inner, up_stride);
    pass.up.differentiate(of_up, rows, room.of_middle_x);
    pass.up.of_parameters(kept.middle_x, of_up, rows);
    normalise_backward(pass.middle, 0, room.of_middle, room.of_middle_x, pass.of_hidden, room.of_attended, pass.attended.stack->grad_room());
    pass.attended.differentiate(room.of_attended, rows, pass.needs_projections ? room.of_out : nullptr);
    pass.attended.of_parameters(kept.attended, room.of_attended, rows);
    if (!pass.needs_projections) return;
    Rows projected[3];
    kept.projected(pass, projected);
    pass.attention.backward(projected, kept.out(pass), kept.row_sums, {room.of_out, pass.attended.stack->in}, projected);
    if (pass.has_keys()) {
        pass.keys.differentiate(of_keys, pass.num_given, pass.of_given);
        pass.keys.of_parameters(pass.x, of_keys, pass.num_given);
    }
    pass.queries.differentiate(of_queries, rows, pass.needs_hidden ? room.of_x : nullptr);
    pass.queries.of_parameters(kept.own_x, of_queries, rows);
    if (pass.needs_hidden) add(pass.of_hidden, room.of_x, pass.of_hidden, rows * width);
}
#endif
