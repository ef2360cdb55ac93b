// Products by the tile registers of AMX: 32 rows × 32 columns at a time. Tests build them with EMULATED_TILES, for
// processors that have none.
#pragma once

#include <atomic>

#include "numbers.h"

constexpr int64_t kDeep = 16;  // groups of a tile, and rows of one

#if defined(EMULATED_TILES)
struct Tile {
  int32_t cells[16][16];
};
inline Tile& tile_register(int which) {
  thread_local Tile registers[8];
  return registers[which];
}
inline void emulated_load(int which, const void* from, int64_t stride) {
  for (int i = 0; i < 16; ++i) std::memcpy(tile_register(which).cells[i], (const char*)from + i * stride, 64);
}
inline void emulated_store(int which, void* to, int64_t stride) {
  for (int i = 0; i < 16; ++i) std::memcpy((char*)to + i * stride, tile_register(which).cells[i], 64);
}
inline std::atomic<int64_t> emulated_products{0};  // so that tests can tell whether tiles were used
inline void emulated_dpbf16(int c, int a, int b) {
  ++emulated_products;
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 16; ++j) {
        const uint32_t x = tile_register(a).cells[i][k], y = tile_register(b).cells[k][j];
        float sum;
        std::memcpy(&sum, &tile_register(c).cells[i][j], 4);
        sum += widened(x & 0xffff) * widened(y & 0xffff);
        sum += widened(x >> 16) * widened(y >> 16);
        std::memcpy(&tile_register(c).cells[i][j], &sum, 4);
      }
}
inline void emulated_dpbusd(int c, int a, int b) {
  ++emulated_products;
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 16; ++j)
        for (int byte = 0; byte < 4; ++byte)
          tile_register(c).cells[i][j] += int32_t(uint8_t(uint32_t(tile_register(a).cells[i][k]) >> 8 * byte)) *
                                          int8_t(uint32_t(tile_register(b).cells[k][j]) >> 8 * byte);
}
#define TILE_LOAD(which, from, stride) emulated_load(which, from, stride)
#define TILE_STORE(which, to, stride) emulated_store(which, to, stride)
#define TILE_ZERO(which) \
  tile_register(which) = Tile {}
#define TILE_BF16(c, a, b) emulated_dpbf16(c, a, b)
#define TILE_INT8(c, a, b) emulated_dpbusd(c, a, b)
inline void begin_tiles() {}
inline void end_tiles() {}
#elif TILES
#include <sys/syscall.h>
#include <unistd.h>
#define TILE_LOAD(which, from, stride) _tile_loadd(which, from, stride)
#define TILE_STORE(which, to, stride) _tile_stored(which, to, stride)
#define TILE_ZERO(which) _tile_zero(which)
#define TILE_BF16(c, a, b) _tile_dpbf16ps(c, a, b)
#define TILE_INT8(c, a, b) _tile_dpbusd(c, a, b)
// Linux lets a process use the registers when it asks (ARCH_REQ_XCOMP_PERM of feature 18).
inline bool tiles_allowed() {
  static const bool allowed = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return allowed;
}
inline void begin_tiles() {
  alignas(64) char shape[64] = {};
  shape[0] = 1;  // the only palette there is
  for (int i = 0; i < 8; ++i) {
    const uint16_t bytes = 64;
    std::memcpy(shape + 16 + 2 * i, &bytes, 2);
    shape[48 + i] = 16;
  }
  _tile_loadconfig(shape);
}
inline void end_tiles() { _tile_release(); }
#endif

#if defined(EMULATED_TILES)
inline bool tiles_allowed() { return true; }
#elif !TILES
inline bool tiles_allowed() { return false; }
#endif

// What multiplies numbers of a kind here and now, the last two as int16; Linux may refuse the registers.
enum Tier : int { kPlain, kGroups, kTiles, kWholeVnni, kWholeAvx2 };
template <class Kind>
Tier tier() {
  return Kind::kTiles && tiles_allowed() ? kTiles : Kind::kGrouped ? kGroups : kPlain;
}

// sums = a · panel, or += a · panel, for the first rows; return how many these are.
#if TILES
template <class Kind>
int64_t by_tiles(const typename Kind::Number* a, int64_t a_stride, const typename Kind::Number* panel, int64_t groups,
                 typename Kind::Cell* sums, int64_t rows, int64_t columns, bool add) {
  if constexpr (!Kind::kTiles) {
    return 0;
  } else {
    // What is no whole tile is left to vectors.
    if (groups % kDeep || columns % 32 || rows < 32 || !tiles_allowed()) return 0;
    constexpr int64_t kWord = 4 / sizeof(typename Kind::Number), kRow = 64;
    const int64_t near = a_stride * sizeof(typename Kind::Number), across = kRow * 4;
    begin_tiles();
    int64_t i = 0;
    for (; i + 32 <= rows; i += 32)
      for (int64_t j = 0; j < columns; j += 32) {
        typename Kind::Cell* at = sums + i * kRow + j;
        if (add) {
          TILE_LOAD(0, at, across);
          TILE_LOAD(1, at + 16, across);
          TILE_LOAD(2, at + 16 * kRow, across);
          TILE_LOAD(3, at + 16 * kRow + 16, across);
        } else {
          TILE_ZERO(0);
          TILE_ZERO(1);
          TILE_ZERO(2);
          TILE_ZERO(3);
        }
        for (int64_t k = 0; k < groups; k += kDeep) {
          const auto* left = a + i * a_stride + k * kWord;
          const auto* right = panel + (k * kRow + j) * kWord;
          TILE_LOAD(4, left, near);
          TILE_LOAD(5, left + 16 * a_stride, near);
          TILE_LOAD(6, right, across);
          TILE_LOAD(7, right + 16 * kWord, across);
          if constexpr (sizeof(typename Kind::Number) == 2) {
            TILE_BF16(0, 4, 6);
            TILE_BF16(1, 4, 7);
            TILE_BF16(2, 5, 6);
            TILE_BF16(3, 5, 7);
          } else {
            TILE_INT8(0, 4, 6);
            TILE_INT8(1, 4, 7);
            TILE_INT8(2, 5, 6);
            TILE_INT8(3, 5, 7);
          }
        }
        TILE_STORE(0, at, across);
        TILE_STORE(1, at + 16, across);
        TILE_STORE(2, at + 16 * kRow, across);
        TILE_STORE(3, at + 16 * kRow + 16, across);
      }
    end_tiles();
    return i;
  }
}
#else
template <class Kind, class... Any>
int64_t by_tiles(Any...) {
  return 0;
}
#endif
