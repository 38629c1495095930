// Matrix products of small blocks, cut into tiles of 16 rows of 64 bytes: what AMX multiplies, and what lies well in the cache.
//
// A product C[m][n] = sum over k of A[m][k] B[k][n] reads operands of type Op: bf16 where the processor multiplies bf16, else float.
//   A: tiles of 16 m and DEPTH k, a row for each m.
//   B: tiles of DEPTH k and 16 n, a row for each k (float), or for each pair of k, which lie side by side for each n (bf16).
//   C: tiles of 16 m and 16 n, float.
// A matrix of tiles is padded to multiples of 32 (BLOCK) with zeros and lies row of tiles after row of tiles unless said otherwise.
#pragma once

#include "sixteen.h"

#include <type_traits>
#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define WITH_AMX 1
#endif

constexpr int64_t BLOCK = 32;
template <typename Op> constexpr int64_t DEPTH = 64 / sizeof(Op);
template <typename Op> constexpr int64_t TILE = 1024 / sizeof(Op);

inline int64_t padded(int64_t count) { return (count + BLOCK - 1) / BLOCK * BLOCK; }

// ---- from rows to operands ----

// A whose m are `tokens` rows, `stride` apart, and whose k are their `width` numbers.
template <typename T, typename Op> void rows_to_a(const T *rows, int64_t stride, int64_t tokens, int64_t width, Op *to) {
    const int64_t depth = padded(width) / DEPTH<Op>;
    for (int64_t token = 0; token < padded(tokens); ++token)
        for (int64_t tile = 0; tile < depth; ++tile) {
            Op *target = to + (token / 16 * depth + tile) * TILE<Op> + token % 16 * DEPTH<Op>;
            const int64_t first = tile * DEPTH<Op>, count = token < tokens ? std::max<int64_t>(width - first, 0) : 0;
            const T *source = rows + token * stride + first;
            if (std::is_same<T, Op>::value && count >= DEPTH<Op>)
                std::memcpy(static_cast<void *>(target), source, 64);
            else
                for (int64_t i = 0; i < DEPTH<Op>; i += 16) store_floats(target + i, count > i ? load_floats(source + i, count - i) : f32x16{});
        }
}

#if defined(__AVX512BF16__)
INLINE PartU side_by_side(PartH first, PartH second) { return __builtin_convertvector(first, PartU) | __builtin_convertvector(second, PartU) << 16; }
#endif

// B whose k are the m of A, and whose n are its k, from an A of `m` by `k`.
inline void a_to_b(const float *a, int64_t m, int64_t k, float *to) { std::memcpy(to, a, size_t(m * k) * sizeof(float)); }
#if defined(__AVX512BF16__)
inline void a_to_b(const bf16 *a, int64_t m, int64_t k, bf16 *to) {
    for (int64_t row = 0; row < m; row += 2)
        for (int64_t column = 0; column < k; column += 16) {
            const bf16 *pair = a + (row / 16 * (k / 32) + column / 32) * TILE<bf16> + row % 16 * 32 + column % 32;
            store(to + (row / 32 * (k / 16) + column / 16) * TILE<bf16> + row % 32 / 2 * 32, side_by_side(load<PartH>(pair), load<PartH>(pair + 32)));
        }
}
#endif

#if defined(__AVX512F__)
// to[j][i] = from[i][j] of 16 x 16 words of 32 bits.
INLINE void transpose_words(const void *from, void *to) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(static_cast<const uint32_t *>(from) + 16 * i);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
            a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; ++j) {
            b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0x88);
            b[i + j + 4] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; ++j) {
        _mm512_storeu_si512(static_cast<uint32_t *>(to) + 16 * j, _mm512_shuffle_i32x4(b[j], b[j + 8], 0x88));
        _mm512_storeu_si512(static_cast<uint32_t *>(to) + 16 * (j + 8), _mm512_shuffle_i32x4(b[j], b[j + 8], 0xdd));
    }
}
#else
INLINE void transpose_words(const void *from, void *to) {
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) static_cast<uint32_t *>(to)[16 * j + i] = static_cast<const uint32_t *>(from)[16 * i + j];
}
#endif

// Each of `count` tiles turned: an A becomes the B, and a B the A, of the transposed matrix, column of tiles after column of tiles.
template <typename Op> void turn_tiles(const Op *from, int64_t count, Op *to) {
    for (int64_t tile = 0; tile < count; ++tile) transpose_words(from + tile * TILE<Op>, to + tile * TILE<Op>);
}

// ---- products ----

// What the program has written is in memory: GCC does not know that the tile instructions read it.
INLINE void written(const void *from) { asm volatile("" ::"r"(from) : "memory"); }

struct Layout {  // how many tiles further the next one lies
    int64_t down, across;
};

struct Product {
    int64_t m, n, k;  // sizes of the product: n a multiple of 32, m of 8, k of 2; where m and k are no multiples of 32, the tiles are there anyway
    Layout a, b, c;   // A: m down, k across; B: k down, n across; C: m down, n across
    bool accumulate;
};

// As many sums as there are registers for, with `multiply(sum, number or pair of A, row of B)`.
template <typename Op, typename Multiply> INLINE void gemm_rows(const Product &p, const Op *a, const Op *b, float *c, const Multiply &multiply) {
    constexpr int ROWS = 8 / PARTS, TILES = PARTS == 1 ? 2 : 1;
    for (int64_t n = 0; n < p.n / 16; n += TILES)
        for (int64_t m = 0; m < p.m; m += ROWS) {
            float *corner = c + (m / 16 * p.c.down + n * p.c.across) * TILE<float> + m % 16 * 16;
            f32x16 sums[ROWS][TILES] = {};
            if (p.accumulate)
                for (int i = 0; i < ROWS; ++i)
                    for (int j = 0; j < TILES; ++j) sums[i][j] = load_floats(corner + j * p.c.across * TILE<float> + 16 * i);
            constexpr int64_t K = DEPTH<Op> / 16;  // in a row of B
            for (int64_t k = 0; k * DEPTH<Op> < p.k; ++k) {
                const Op *left = a + (m / 16 * p.a.down + k * p.a.across) * TILE<Op> + m % 16 * DEPTH<Op>;
                const Op *right = b + (k * p.b.down + n * p.b.across) * TILE<Op>;
                const int64_t rows_of_b = std::min<int64_t>(16, p.k / K - 16 * k);
#pragma GCC unroll 4
                for (int64_t row = 0; row < rows_of_b; ++row) {
                    f32x16 rows[TILES];
                    for (int j = 0; j < TILES; ++j) rows[j] = load_floats(reinterpret_cast<const float *>(right + j * p.b.across * TILE<Op> + row * DEPTH<Op>));
#pragma GCC unroll 8
                    for (int i = 0; i < ROWS; ++i) {
                        const float factor = load<float>(left + i * DEPTH<Op> + row * K);
#pragma GCC unroll 2
                        for (int j = 0; j < TILES; ++j) multiply(sums[i][j], factor, rows[j]);
                    }
                }
            }
            for (int i = 0; i < ROWS; ++i)
                for (int j = 0; j < TILES; ++j) store_floats(corner + j * p.c.across * TILE<float> + 16 * i, sums[i][j]);
        }
}

inline void gemm(const Product &p, const float *a, const float *b, float *c, bool) {
    gemm_rows(p, a, b, c, [](f32x16 &sum, float factor, f32x16 row) { sum += row * factor; });
}

#if defined(__AVX512BF16__)
// `amx`: in the life of an AmxSession that is `used`.
inline void gemm(const Product &p, const bf16 *a, const bf16 *b, float *c, bool amx) {
#if WITH_AMX
    if (amx) {
        written(a);
        written(b);
        for (int64_t m = 0; 16 * m < p.m; m += 2)
            for (int64_t n = 0; n < p.n / 16; n += 2) {
                float *corner = c + (m * p.c.down + n * p.c.across) * TILE<float>, *below = corner + p.c.down * TILE<float>;
                const int64_t beside = p.c.across * TILE<float>;
                const bf16 *left = a + m * p.a.down * TILE<bf16>, *right = b + n * p.b.across * TILE<bf16>;
                if (p.accumulate) {
                    _tile_loadd(0, corner, 64);
                    _tile_loadd(1, corner + beside, 64);
                    _tile_loadd(2, below, 64);
                    _tile_loadd(3, below + beside, 64);
                } else {
                    _tile_zero(0);
                    _tile_zero(1);
                    _tile_zero(2);
                    _tile_zero(3);
                }
                for (int64_t k = 0; 32 * k < p.k; ++k) {
                    _tile_loadd(4, left, 64);
                    _tile_loadd(5, left + p.a.down * TILE<bf16>, 64);
                    _tile_loadd(6, right, 64);
                    _tile_loadd(7, right + p.b.across * TILE<bf16>, 64);
                    _tile_dpbf16ps(0, 4, 6);
                    _tile_dpbf16ps(1, 4, 7);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                    left += p.a.across * TILE<bf16>;
                    right += p.b.down * TILE<bf16>;
                }
                _tile_stored(0, corner, 64);
                _tile_stored(1, corner + beside, 64);
                _tile_stored(2, below, 64);
                _tile_stored(3, below + beside, 64);
            }
        return;
    }
#endif
    gemm_rows(p, a, b, c, [](f32x16 &sum, float factor, f32x16 row) {
        sum.part[0] = (PartF)_mm512_dpbf16_ps((__m512)sum.part[0], (__m512bh)_mm512_set1_ps(factor), (__m512bh)row.part[0]);
    });
}
#endif

// Holds the processor's tile registers, where the kernel grants them to this process.
struct AmxSession {
    bool used = false;
    AmxSession() {
#if WITH_AMX
        static const bool granted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
        used = granted;
        if (!used) return;
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } configuration;
        written(&configuration);
        _tile_loadconfig(&configuration);
#endif
    }
    ~AmxSession() {
#if WITH_AMX
        if (used) _tile_release();
#endif
    }
};
