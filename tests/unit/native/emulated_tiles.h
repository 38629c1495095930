// The tile instructions that the kernels use, computed by AVX512-BF16: what is written for processors with tile registers then runs where
// there are none, slowly. Given to the compiler with -include and -D__AMX_BF16__.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace emulated {

struct Configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
inline thread_local Configuration configuration = {};
alignas(64) inline thread_local char tiles[8][16][64];

inline int of(int tile) {
    const bool is_whole = configuration.palette == 1 && configuration.row_bytes[tile] == 64 && configuration.rows[tile] == 16;
    if (!is_whole) std::abort();  // the processor would fault, or compute less
    return tile;
}
inline void configure(const void *from) { std::memcpy(&configuration, from, sizeof configuration); }
inline void release() { configuration = {}; }
inline void zero(int tile) { std::memset(tiles[of(tile)], 0, sizeof tiles[0]); }
inline void load(int tile, const void *from, int64_t stride) {
    for (int row = 0; row < 16; ++row) std::memcpy(tiles[of(tile)][row], static_cast<const char *>(from) + row * stride, 64);
}
inline void store(int tile, void *to, int64_t stride) {
    for (int row = 0; row < 16; ++row) std::memcpy(static_cast<char *>(to) + row * stride, tiles[of(tile)][row], 64);
}
inline void multiply(int sums, int left, int right) {
    for (int row = 0; row < 16; ++row) {
        __m512 sum = _mm512_load_ps(tiles[of(sums)][row]);
        for (int pair = 0; pair < 16; ++pair) {
            float both;
            std::memcpy(&both, tiles[of(left)][row] + 4 * pair, sizeof both);
            sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_ps(both), (__m512bh)_mm512_load_ps(tiles[of(right)][pair]));
        }
        _mm512_store_ps(tiles[sums][row], sum);
    }
}

}  // namespace emulated

#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig emulated::configure
#define _tile_release emulated::release
#define _tile_loadd emulated::load
#define _tile_stream_loadd emulated::load
#define _tile_stored emulated::store
#define _tile_zero emulated::zero
#define _tile_dpbf16ps emulated::multiply
#define syscall(...) 0  // permission to use the registers
