// C[m][n] = sum over k of a[m][k] b[k][n] in bf16, summed in fp32 over the whole of k in one order, whatever the number of threads.
//
// Operands are copied into tiles: the smaller one (`kept`) whole, before the product, the other (`streamed`) in blocks that stay in the
// cache, by the thread that multiplies them. AMX reads its left operand with k along the rows and its right one with k down the rows, two
// by two; an operand that lies the other way in memory is turned tile by tile, and a left one that lies this way is read in place. Where
// less has to be turned so, b is the left operand, and the tiles of C are turned. A processor without tile registers that multiplies pairs of
// bf16 reads the same tiles: a pair of the left operand at a time, times a row of the right one.
#include "products.h"

extern "C" int64_t has_tiles() { return AmxSession().used; }
extern "C" int64_t has_products() {
#if WITH_AMX
    return has_tiles();
#else
    return WITH_PRODUCTS;
#endif
}

#if WITH_PRODUCTS
#include <cstdlib>
#include <memory>
#include <new>
#include <sys/mman.h>

namespace {

constexpr int64_t STEP = 2 * TILE<bf16>;   // elements of one panel (32 of m or n) in one step (32 of k)
constexpr int64_t SUMS = 4 * TILE<float>;  // of 32 x 32 numbers
constexpr int64_t CHUNK_STEPS = 20;        // the most steps at a time: two panels of them about fit the first cache
constexpr int64_t STREAMED_PANELS = 8;     // the most panels at a time, of either operand
constexpr int64_t KEPT_PANELS = 32;
constexpr int64_t AHEAD = 4;               // steps by which a copy asks for its input
constexpr int64_t DEEP = 4096;             // sums over twice as many or more are made in parts of so many: a part of an operand stays in the cache

// Memory that is kept between calls, and only ever grows.
struct Buffer {
    static constexpr size_t PAGE = 1 << 21;  // where the system gives such pages
    void *data = nullptr;
    size_t size = 0;
    ~Buffer() { std::free(data); }
    template <typename T> T *of(int64_t count) {
        const size_t wanted = size_t(count) * sizeof(T);
        if (wanted > size) {
            std::free(data);
            size = (wanted + PAGE - 1) / PAGE * PAGE;
            data = std::aligned_alloc(PAGE, size);
            if (!data) std::abort();
            madvise(data, size, MADV_HUGEPAGE);
        }
        return static_cast<T *>(data);
    }
};

// An operand: `outer` is its m or n; one of the strides is 1.
struct Operand {
    const bf16 *data;
    int64_t outer, k, outer_stride, k_stride;
    int64_t panels() const { return (outer + 31) / 32; }
    int64_t steps() const { return (k + 31) / 32; }
    bool along_k() const { return k_stride == 1; }
};

// The size of equal shares of `count`, at least 1 and at most `most`.
INLINE int64_t share(int64_t count, int64_t most) {
    const int64_t shares = std::max<int64_t>((count + most - 1) / most, 1);
    return std::max<int64_t>((count + shares - 1) / shares, 1);
}

INLINE uint32_t first_bits(int64_t count) { return count >= 32 ? ~0u : count <= 0 ? 0u : (1u << count) - 1u; }

// 32 of m or n and 32 of k as two left or right tiles, with zeros beyond the operand.
INLINE void pack_step(const Operand &from, int64_t outer, int64_t k, bool right, bf16 *to) {
    __m512i words[2][16];
    const bf16 *corner = from.data + outer * from.outer_stride + k * from.k_stride;
    if (from.along_k()) {
        const uint32_t mask = first_bits(from.k - k);
        for (int i = 0; i < 32; ++i) {
            const bf16 *row = corner + i * from.outer_stride;
            __builtin_prefetch(row + AHEAD * 32);
            words[i / 16][i % 16] = _mm512_maskz_loadu_epi16(outer + i < from.outer ? mask : 0u, row);
        }
    } else {
        const uint32_t mask = first_bits(from.outer - outer);
        const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);  // so that unpacking leaves the columns in theirs
        for (int i = 0; i < 16; ++i) {
            __m512i rows[2];
            for (int j = 0; j < 2; ++j) {
                const bf16 *row = corner + (2 * i + j) * from.k_stride;
                __builtin_prefetch(row + 32 * from.k_stride);
                rows[j] = _mm512_permutexvar_epi64(order, _mm512_maskz_loadu_epi16(k + 2 * i + j < from.k ? mask : 0u, row));
            }
            words[0][i] = _mm512_unpacklo_epi16(rows[0], rows[1]);
            words[1][i] = _mm512_unpackhi_epi16(rows[0], rows[1]);
        }
    }
    for (int half = 0; half < 2; ++half)
        if (from.along_k() == right)
            transpose_words(words[half], to + half * TILE<bf16>);
        else
            for (int i = 0; i < 16; ++i) store(to + half * TILE<bf16> + 32 * i, words[half][i]);
}

// Panels [first, end) in steps [step, end_step), `panel_size` elements a panel; in the order of memory.
void pack(const Operand &from, int64_t first, int64_t end, int64_t step, int64_t end_step, bool right, bf16 *to, int64_t panel_size) {
    const auto one = [&](int64_t panel, int64_t s) {
        pack_step(from, panel * 32, s * 32, right, to + (panel - first) * panel_size + (s - step) * STEP);
    };
    if (from.along_k())
        for (int64_t panel = first; panel < end; ++panel)
            for (int64_t s = step; s < end_step; ++s) one(panel, s);
    else
        for (int64_t s = step; s < end_step; ++s)
            for (int64_t panel = first; panel < end; ++panel) one(panel, s);
}

// The left operand's 32 rows: as panels, or where they lie.
struct Left {
    const bf16 *data;
    int64_t row_bytes, half, step;  // from a row to the next, from 16 rows to the next 16, from a step to the next
};

INLINE Left packed_left(const bf16 *panel) { return {panel, 64, TILE<bf16>, STEP}; }

// sums (+)= left x right: up to two tiles down and two across. A panel on the right is read once, one on the left again and again.
#if WITH_AMX
template <int DOWN, int ACROSS> INLINE void multiply(const Left &from, const bf16 *right, int64_t steps, bool resume, float *sums) {
    const bf16 *left = from.data;
    if (resume) {
        _tile_loadd(0, sums, 64);
        if (ACROSS > 1) _tile_loadd(1, sums + 256, 64);
        if (DOWN > 1) _tile_loadd(2, sums + 512, 64);
        if (DOWN > 1 && ACROSS > 1) _tile_loadd(3, sums + 768, 64);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    if (steps) {
        _tile_loadd(4, left, from.row_bytes);
        _tile_stream_loadd(6, right, 64);
        if (DOWN > 1) _tile_loadd(5, left + from.half, from.row_bytes);
        if (ACROSS > 1) _tile_stream_loadd(7, right + TILE<bf16>, 64);
    }
    for (int64_t step = 1; step <= steps; ++step) {  // a tile is loaded anew as soon as its last product is under way
        const bool more = step < steps;
        left += from.step;
        right += STEP;
        _tile_dpbf16ps(0, 4, 6);
        if (ACROSS > 1) _tile_dpbf16ps(1, 4, 7);
        if (more) _tile_loadd(4, left, from.row_bytes);
        if (DOWN > 1) _tile_dpbf16ps(2, 5, 6);
        if (more) _tile_stream_loadd(6, right, 64);
        if (DOWN > 1 && ACROSS > 1) _tile_dpbf16ps(3, 5, 7);
        if (more && DOWN > 1) _tile_loadd(5, left + from.half, from.row_bytes);
        if (more && ACROSS > 1) _tile_stream_loadd(7, right + TILE<bf16>, 64);
    }
    _tile_stored(0, sums, 64);
    if (ACROSS > 1) _tile_stored(1, sums + 256, 64);
    if (DOWN > 1) _tile_stored(2, sums + 512, 64);
    if (DOWN > 1 && ACROSS > 1) _tile_stored(3, sums + 768, 64);
}
#else
template <int DOWN, int ACROSS> INLINE void multiply(const Left &from, const bf16 *right, int64_t steps, bool resume, float *sums) {
    constexpr int ROWS = ACROSS == 1 ? 16 : 8;  // as many sums as hide how long each takes
    for (int row = 0; row < 16 * DOWN; row += ROWS) {
        const char *left = reinterpret_cast<const char *>(from.data + row / 16 * from.half) + row % 16 * from.row_bytes;
        float *const to = sums + row / 16 * 512 + row % 16 * 16;
        __m512 found[ROWS][ACROSS];
        for (int i = 0; i < ROWS; ++i)
            for (int j = 0; j < ACROSS; ++j) found[i][j] = resume ? _mm512_load_ps(to + 16 * i + 256 * j) : _mm512_setzero_ps();
        const bf16 *from_right = right;
        for (int64_t step = 0; step < steps; ++step, left += from.step * 2, from_right += STEP)
#pragma GCC unroll 4  // the branch behind a loop of 16 is guessed wrong
            for (int pair = 0; pair < 16; ++pair) {
                __m512bh columns[ACROSS];
                for (int j = 0; j < ACROSS; ++j) columns[j] = (__m512bh)_mm512_load_ps(from_right + j * TILE<bf16> + 32 * pair);
#pragma GCC unroll 16
                for (int i = 0; i < ROWS; ++i) {
                    const __m512bh both = (__m512bh)_mm512_set1_ps(load<float>(left + i * from.row_bytes + 4 * pair));
#pragma GCC unroll 2
                    for (int j = 0; j < ACROSS; ++j) found[i][j] = _mm512_dpbf16_ps(found[i][j], both, columns[j]);
                }
            }
        for (int i = 0; i < ROWS; ++i)
            for (int j = 0; j < ACROSS; ++j) _mm512_store_ps(to + 16 * i + 256 * j, found[i][j]);
    }
}
#endif

INLINE void multiply(bool two_down, bool two_across, const Left &left, const bf16 *right, int64_t steps, bool resume, float *sums) {
    if (two_down && two_across)
        multiply<2, 2>(left, right, steps, resume, sums);
    else if (two_down)
        multiply<2, 1>(left, right, steps, resume, sums);
    else if (two_across)
        multiply<1, 2>(left, right, steps, resume, sums);
    else
        multiply<1, 1>(left, right, steps, resume, sums);
}

struct Output {
    void *data;
    int64_t m, n, stride;
    const float *bias;
    bool is_bf16, accumulate;
};

INLINE __m512 load_masked(const float *from, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, from); }
INLINE __m512 load_masked(const bf16 *from, __mmask16 mask) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16);
}
INLINE void store_row(float *to, uint32_t mask, __m512 first, __m512 second) {
    _mm512_mask_storeu_ps(to, __mmask16(mask), first);
    _mm512_mask_storeu_ps(to + 16, __mmask16(mask >> 16), second);
}
INLINE void store_row(bf16 *to, uint32_t mask, __m512 first, __m512 second) {
    _mm512_mask_storeu_epi16(to, mask, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

// 32 x 32 sums, as tiles [[0, 1], [2, 3]] of C, or (`turned`) of its transpose; what lies beyond C is left out.
template <typename T> void store_sums(const Output &out, int64_t m, int64_t n, bool turned, float *sums) {
    const uint32_t mask = first_bits(out.n - n);
    const __mmask16 low = __mmask16(mask), high = __mmask16(mask >> 16);
    const __m512 zeros = _mm512_setzero_ps();
    const __m512 bias[2] = {out.bias ? load_masked(out.bias + n, low) : zeros, out.bias ? load_masked(out.bias + n + 16, high) : zeros};
    T *to = static_cast<T *>(out.data) + m * out.stride + n;
    const bool plain = !out.bias && !out.accumulate && mask == ~0u && out.m - m >= 32;
    for (int64_t down = 0; down < 2; ++down) {
        float *left = sums + 256 * (turned ? down : 2 * down), *right = sums + 256 * (turned ? 2 + down : 2 * down + 1);
        if (turned) {
            transpose_words(left, left);
            transpose_words(right, right);
        }
        const int64_t rows = plain ? 16 : std::min<int64_t>(out.m - m - 16 * down, 16);
        for (int64_t row = 0; row < rows; ++row, to += out.stride) {
            __m512 first = _mm512_load_ps(left + 16 * row), second = _mm512_load_ps(right + 16 * row);
            if (plain) {
                store_row(to, ~0u, first, second);
                continue;
            }
            first = _mm512_add_ps(first, bias[0]);
            second = _mm512_add_ps(second, bias[1]);
            if (out.accumulate) {
                first = _mm512_add_ps(first, load_masked(to, low));
                second = _mm512_add_ps(second, load_masked(to + 16, high));
            }
            store_row(to, mask, first, second);
        }
    }
}

// Asks for lines of C that will be written soon, while there is something to multiply: those of the next pair of 64 bytes in a row.
INLINE void expect_store(const Output &out, int64_t m, int64_t n) {
    const int64_t size = out.is_bf16 ? 2 : 4, next = n + 128 / size;
    if (n * size % 128 || next >= out.n) return;
    const char *to = static_cast<const char *>(out.data) + (m * out.stride + next) * size;
    for (int64_t row = std::min<int64_t>(out.m - m, 32); row > 0; --row, to += out.stride * size) {
        __builtin_prefetch(to, 1);
        __builtin_prefetch(to + 64, 1);
    }
}

struct Job {
    Operand streamed, kept;
    const bf16 *whole;       // the panels of `kept`; null if it is read where it lies
    bool streams_a, turned;  // turned: b is the left operand
    Output out;

    bool streamed_right() const { return streams_a == turned; }

    // Whether a left operand can be read in place: rows that lie a multiple of 4 kB apart would push each other out of the first cache.
    static bool in_place(const Operand &left) { return left.along_k() && left.k % 32 == 0 && left.outer_stride % 2048; }

    // The products of streamed panels [first, end) with kept panels [kept_first, kept_end).
    void run(int64_t first, int64_t end, int64_t kept_first, int64_t kept_end) const {
        thread_local Buffer blocks, waiting;
        const AmxSession session;
        const int64_t steps = streamed.steps(), chunk = share(steps, CHUNK_STEPS), panel_size = chunk * STEP;
        const bool waits = chunk < steps;
        const int64_t most = waits ? STREAMED_PANELS / 2 : STREAMED_PANELS;
        bf16 *block = blocks.of<bf16>(most * panel_size);
        float *sums = waiting.of<float>(most * KEPT_PANELS * SUMS);
        const bool place = !streamed_right() && in_place(streamed);
        const int64_t width = share(kept_end - kept_first, place ? KEPT_PANELS / 2 : KEPT_PANELS);
        for (int64_t group = kept_first; group < kept_end; group += width)
            for (int64_t panel = first; panel < end; panel += most) {
                const int64_t mine = std::min(most, end - panel), theirs = std::min(width, kept_end - group);
                for (int64_t step = 0; step == 0 || step < steps; step += chunk) {
                    const int64_t count = std::min(chunk, steps - step);
                    const int64_t placed = place ? std::min(mine, streamed.outer / 32 - panel) : 0;  // not a last panel of fewer rows
                    bf16 *copied = block + placed * panel_size;
                    pack(streamed, panel + placed, panel + mine, step, step + count, streamed_right(), copied, panel_size);
                    written(block);
                    for (int64_t pair = 0; pair < mine * theirs; ++pair) {  // a kept panel stays in the first cache
                        const int64_t i = pair % mine, j = pair / mine;
                        const bf16 *copy = i < placed ? nullptr : block + i * panel_size;
                        one(panel + i, group + j, copy, step, count, sums + (waits ? pair * SUMS : 0));
                    }
                }
            }
    }

    // `mine`: the streamed panel; null if it is read where it lies.
    INLINE void one(int64_t panel, int64_t other, const bf16 *mine, int64_t step, int64_t count, float *sums) const {
        const int64_t m = 32 * (streams_a ? panel : other), n = 32 * (streams_a ? other : panel);
        const bool last = step + count >= streamed.steps();
        if (last) expect_store(out, m, n);
        const bf16 *theirs = whole ? whole + (other * streamed.steps() + step) * STEP : nullptr;
        const bool two_mine = streamed.outer - panel * 32 > 16, two_theirs = kept.outer - other * 32 > 16;
        if (streamed_right())
            multiply(two_theirs, two_mine, left_panel(kept, theirs, other, step), mine, count, step > 0, sums);
        else
            multiply(two_mine, two_theirs, left_panel(streamed, mine, panel, step), theirs, count, step > 0, sums);
        if (last) out.is_bf16 ? store_sums<bf16>(out, m, n, turned, sums) : store_sums<float>(out, m, n, turned, sums);
    }

    static Left left_panel(const Operand &from, const bf16 *packed, int64_t panel, int64_t step) {
        if (packed) return packed_left(packed);
        return {from.data + panel * 32 * from.outer_stride + step * 32, from.outer_stride * 2, from.outer_stride * 16, 32};
    }
};

void pack_whole(const Operand &from, bool right, bf16 *to) {
    parallel_for(from.steps(), std::max<int64_t>(1, 64 / (from.panels() + 1)), [&](int64_t step, int64_t end) {
        pack(from, 0, from.panels(), step, end, right, to + step * STEP, from.steps() * STEP);
    });
}

// Whether b is to be the left operand: the fewest numbers to be turned, those of C being fp32.
bool better_turned(const Operand &a, const Operand &b) {
    const int64_t straight = (a.along_k() ? 0 : a.outer) + (b.along_k() ? b.outer : 0);
    const int64_t turned = (a.along_k() ? a.outer : 0) + (b.along_k() ? 0 : b.outer);
    return straight * a.k > turned * a.k + 2 * a.outer * b.outer;
}

void multiply_whole(const Operand &left, const Operand &right, const Output &out) {
    thread_local Buffer buffer;
    const bool turned = better_turned(left, right), streams_a = left.outer >= right.outer;
    const Operand &streamed = streams_a ? left : right, &kept = streams_a ? right : left;
    Job job{streamed, kept, nullptr, streams_a, turned, out};
    const bool in_place = job.streamed_right() && Job::in_place(kept) && kept.outer % 32 == 0;
    if (!in_place) {
        bf16 *whole = buffer.of<bf16>(kept.panels() * kept.steps() * STEP);
        pack_whole(kept, !job.streamed_right(), whole);
        job.whole = whole;
    }
    // Threads share the operand with which they finish closer together, or else the streamed one, which each then copies a part of.
    const int64_t down = streamed.panels(), across = kept.panels(), threads = omp_get_max_threads();
    const auto largest = [=](int64_t panels) { return (panels + threads - 1) / threads; };
    if (largest(down) * across * 50 <= largest(across) * down * 51)
        parallel_for(down, 1, [&](int64_t first, int64_t end) { job.run(first, end, 0, across); });
    else
        parallel_for(across, 1, [&](int64_t first, int64_t end) { job.run(0, down, first, end); });
}

// In parts of k, which are added up in fp32.
void multiply_deep(const Operand &left, const Operand &right, const Output &out) {
    const auto add_parts = [&](Output sums) {
        for (int64_t k = 0; k < left.k; k += DEEP) {
            const int64_t count = std::min(DEEP, left.k - k);
            multiply_whole({left.data + k * left.k_stride, left.outer, count, left.outer_stride, left.k_stride},
                           {right.data + k * right.k_stride, right.outer, count, right.outer_stride, right.k_stride}, sums);
            sums.bias = nullptr;
            sums.accumulate = true;
        }
    };
    if (!out.is_bf16) return add_parts(out);
    const std::unique_ptr<float[]> sums(new (std::nothrow) float[out.m * out.n]);
    if (!sums) return multiply_whole(left, right, out);
    add_parts({sums.get(), out.m, out.n, out.n, out.bias, false, false});
    parallel_rows(out.m, out.n, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const float *from = sums.get() + row * out.n;
            bf16 *to = static_cast<bf16 *>(out.data) + row * out.stride;
#pragma omp simd
            for (int64_t i = 0; i < out.n; ++i) to[i] = from_float<bf16>(from[i] + (out.accumulate ? to_float(to[i]) : 0));
        }
    });
}

}  // namespace

extern "C" void product(const bf16 *a, const bf16 *b, void *out, const float *bias, int64_t m, int64_t n, int64_t k, int64_t a_m_stride,
                        int64_t a_k_stride, int64_t b_k_stride, int64_t b_n_stride, int64_t out_stride, int64_t is_bf16, int64_t accumulate) {
    const Operand left{a, m, k, a_m_stride, a_k_stride}, right{b, n, k, b_n_stride, b_k_stride};
    const Output place{out, m, n, out_stride, bias, bool(is_bf16), bool(accumulate)};
    k < 2 * DEEP ? multiply_whole(left, right, place) : multiply_deep(left, right, place);
}
#endif
