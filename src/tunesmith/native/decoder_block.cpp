// Blocks of decoders of Llama's make, and their gradients: all that stands between the hidden states before a block and those after it. The
// norm that the next block begins with is made here too, of the sum that it is of.
#include "blocks.h"

#if WITH_PRODUCTS

namespace {

struct Norm {
    const float *weight;  // null: there is none
    double eps;
    float *of_weight;     // or null
};

// A pass through a block: native/structs.py fills it.
struct DecoderPass {
    Linear projections, attended, gates, down;
    Attention attention;
    Norm first, middle, next;
    void (*times)(const bf16 *gate, const bf16 *up, bf16 *y, int64_t rows, int64_t width, int64_t stride, int64_t y_stride);
    void (*times_backward)(const bf16 *gate, const bf16 *up, const bf16 *grad, bf16 *grad_gate, bf16 *grad_up, bf16 *y, int64_t rows, int64_t width,
                           int64_t stride, int64_t grad_stride, int64_t gates_stride, int64_t y_stride);
    void (*rotate)(const bf16 *x, const void *cos, const void *sin, bf16 *out, int64_t batch, int64_t tokens, int64_t heads, int64_t width,
                   int64_t batch_stride, int64_t token_stride, int64_t head_stride, int64_t out_stride, int64_t angle_stride, int64_t back);
    const void *cos, *sin;              // [rows, attention.width]
    int64_t rows;
    const float *hidden;                // [rows, width]
    bf16 *x;                            // its norm, in its room; in the gradient null if it was not kept
    float *rstd;                        // 1 / its root mean squares
    int64_t makes_x;                    // x and rstd are to be made
    char *kept, *temporary;             // as long as decoder_block_sizes says; the first is for the gradient
    float *output;                      // [rows, width]
    bf16 *next_x;                       // its norm, in the room of the next block, and 1 / its root mean squares; or null
    int64_t next_stride;
    float *next_rstd;
    const float *grad;                  // that of the output
    float *of_hidden;
    int64_t needs_x, needs_projections; // whether the gradients of x, and of queries, keys and values, are wanted

    int64_t width() const { return attended.stack->out; }
    int64_t inner() const { return down.stack->in; }
};

// What linear layers without adapters read is made again where its gradient is read, and not kept. Queries, keys, values, gates and what they are
// multiplied with lie in the rooms of their gradients, which are written over them.
struct Kept {
    bf16 *projected, *attended, *outputs, *middle_x, *gates, *activated;
    float *row_sums, *middle_rstd;

    Kept(const DecoderPass &pass, Arena &arena) {
        const int64_t rows = pass.rows;
        projected = arena.take<bf16>(rows * pass.projections.stack->grad_room());
        attended = arena.take<bf16>(rows * pass.attended.stack->room());
        outputs = arena.take<bf16>(rows * pass.width());
        middle_x = pass.gates.stack->between ? arena.take<bf16>(rows * pass.gates.stack->room()) : nullptr;
        gates = arena.take<bf16>(rows * pass.gates.stack->grad_room());
        activated = pass.down.stack->between ? arena.take<bf16>(rows * pass.down.stack->room()) : nullptr;
        row_sums = arena.take<float>(rows * pass.attention.heads * 2);
        middle_rstd = arena.take<float>(rows);
    }
    void split(const DecoderPass &pass, Rows (&parts)[3]) const {
        pass.attention.split({projected, pass.projections.stack->grad_room()}, {}, parts);
    }
    Rows out(const DecoderPass &pass) const { return {attended, pass.attended.stack->room()}; }
};

struct Forward {
    bf16 *middle_x, *activated, *added;
    float *middle;

    Forward(const DecoderPass &pass, const Kept &kept, Arena &arena) {
        middle_x = kept.middle_x ? kept.middle_x : arena.take<bf16>(pass.rows * pass.gates.stack->room());
        activated = kept.activated ? kept.activated : arena.take<bf16>(pass.rows * pass.down.stack->room());
        added = arena.take<bf16>(pass.rows * pass.width());
        middle = arena.take<float>(pass.rows * pass.width());
    }
};

struct Backward {
    bf16 *of_down, *of_activated, *of_middle_x, *of_attended, *of_out, *of_x;  // of outputs: in their rooms
    float *of_middle;

    Backward(const DecoderPass &pass, Arena &arena) {
        const int64_t rows = pass.rows, width = pass.width();
        of_down = arena.take<bf16>(rows * pass.down.stack->grad_room());
        of_activated = arena.take<bf16>(rows * pass.inner());
        of_middle_x = arena.take<bf16>(rows * width);
        of_middle = arena.take<float>(rows * width);
        of_attended = arena.take<bf16>(rows * pass.attended.stack->grad_room());
        of_out = arena.take<bf16>(rows * pass.attended.stack->in);
        of_x = of_middle_x;  // which nobody reads any more
    }
};

void rotate(const DecoderPass &pass, Rows queries, bool back) {
    const Attention &attention = pass.attention;
    pass.rotate(queries.data, pass.cos, pass.sin, queries.data, 1, pass.rows, attention.heads + attention.kv_heads, attention.width, 0, queries.stride,
                attention.width, queries.stride, 0, back);
}

}  // namespace

extern "C" int64_t decoder_pass_size() { return sizeof(DecoderPass); }

// In bytes: what is kept, and what a pass and its gradient want besides.
extern "C" void decoder_block_sizes(const DecoderPass *pass, int64_t *sizes) {
    Arena of_kept(nullptr), forward(nullptr), backward(nullptr);
    const Kept kept(*pass, of_kept);
    Forward(*pass, kept, forward), Backward(*pass, backward);
    sizes[0] = of_kept.size();
    sizes[1] = forward.size();
    sizes[2] = backward.size();
}

extern "C" void decoder_block_forward(const DecoderPass *given) {
    const DecoderPass &pass = *given;
    const int64_t rows = pass.rows, width = pass.width(), inner = pass.inner();
    Arena of_kept(pass.kept), of_temporary(pass.temporary);
    const Kept kept(pass, of_kept);
    const Forward room(pass, kept, of_temporary);
    if (pass.makes_x)
        add_rms_norm_bf16(nullptr, pass.hidden, pass.first.weight, nullptr, pass.x, pass.projections.stack->room(), pass.rstd, rows, width, pass.first.eps);
    const int64_t gates_stride = pass.gates.stack->grad_room();
    pass.projections.multiply(pass.x, rows, kept.projected, pass.projections.stack->grad_room());
    Rows parts[3];
    kept.split(pass, parts);
    rotate(pass, parts[0], false);
    pass.attention.forward(parts, kept.out(pass), kept.row_sums);
    pass.attended.multiply(kept.attended, rows, kept.outputs, width);
    add_rms_norm_bf16(kept.outputs, pass.hidden, pass.middle.weight, room.middle, room.middle_x, pass.gates.stack->room(), kept.middle_rstd, rows,
                      width, pass.middle.eps);
    pass.gates.multiply(room.middle_x, rows, kept.gates, gates_stride);
    pass.times(kept.gates, kept.gates + inner, room.activated, rows, inner, gates_stride, pass.down.stack->room());
    pass.down.multiply(room.activated, rows, room.added, width);
    if (pass.next_x)
        add_rms_norm_bf16(room.added, room.middle, pass.next.weight, pass.output, pass.next_x, pass.next_stride, pass.next_rstd, rows, width,
                          pass.next.eps);
    else
        add(room.middle, room.added, pass.output, rows * width);
}

extern "C" void decoder_block_backward(const DecoderPass *given) {
    const DecoderPass &pass = *given;
    const int64_t rows = pass.rows, width = pass.width(), inner = pass.inner();
    Arena of_kept(pass.kept), of_temporary(pass.temporary);
    const Kept kept(pass, of_kept);
    const Backward room(pass, of_temporary);
    // What was not kept, and is wanted for the gradient of a weight, is written over its own gradient.
    const auto place = [](const Linear &linear, const bf16 *kept_x, bf16 *of_x) { return kept_x || !linear.gradients.weight ? nullptr : of_x; };
    round_rows(pass.grad, {room.of_down, pass.down.stack->grad_room()}, rows, width);
    pass.down.differentiate(room.of_down, rows, room.of_activated);
    bf16 *activated = place(pass.down, kept.activated, room.of_activated);
    bf16 *const of_gates = kept.gates, *const of_projected = kept.projected;
    const int64_t gates_stride = pass.gates.stack->grad_room();
    pass.times_backward(kept.gates, kept.gates + inner, room.of_activated, of_gates, of_gates + inner, activated, rows, inner, gates_stride, inner,
                        gates_stride, inner);
    pass.down.of_parameters(kept.activated ? kept.activated : activated, room.of_down, rows);
    pass.gates.differentiate(of_gates, rows, room.of_middle_x);
    bf16 *middle_x = place(pass.gates, kept.middle_x, room.of_middle_x);
    add_rms_norm_backward_bf16(kept.outputs, pass.hidden, pass.middle.weight, kept.middle_rstd, room.of_middle_x, width, pass.grad, room.of_middle,
                               room.of_attended, pass.attended.stack->grad_room(), middle_x, width, pass.middle.of_weight, rows, width);
    pass.gates.of_parameters(kept.middle_x ? kept.middle_x : middle_x, of_gates, rows);
    pass.attended.differentiate(room.of_attended, rows, pass.needs_projections ? room.of_out : nullptr);
    pass.attended.of_parameters(kept.attended, room.of_attended, rows);
    if (!pass.needs_projections) return;
    Rows parts[3];
    kept.split(pass, parts);
    pass.attention.backward(parts, kept.out(pass), kept.row_sums, {room.of_out, pass.attended.stack->in}, parts);
    rotate(pass, parts[0], true);
    pass.projections.differentiate(of_projected, rows, pass.needs_x ? room.of_x : nullptr);
    bf16 *x = pass.needs_x ? place(pass.projections, pass.x, room.of_x) : nullptr;
    if (pass.needs_x)
        add_rms_norm_backward_bf16(nullptr, pass.hidden, pass.first.weight, pass.rstd, room.of_x, width, room.of_middle, pass.of_hidden, nullptr, 0, x,
                                   width, pass.first.of_weight, rows, width);
    pass.projections.of_parameters(pass.x ? pass.x : x, of_projected, rows);
}
#endif
