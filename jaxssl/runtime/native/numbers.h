// The numbers that products are made of, and how a group of them is multiplied: the one place with a processor's own
// instructions. Each kind says how many numbers of a sum lie beside each other (`kGroup`), as the instructions want it,
// and what multiplies them: instructions that add up a group (`kGrouped`), AMX's tile registers (`kTiles`).
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "vectors.h"

// Which numbers the tile registers multiply is said here alone; `by_tiles` and `tier` go by it.
#if defined(EMULATED_TILES)  // in plain C++, for tests
#define TILES true
#elif defined(__AMX_BF16__) || defined(__AMXBF16__)  // the latter in Clang up to 15; whoever has it has the int8 ones
#define TILES true
#else
#define TILES false
#endif

// A bfloat16 is the upper half of a float.
inline float widened(uint16_t bits) {
  const uint32_t whole = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &whole, 4);
  return value;
}

inline float number(float value) { return value; }
inline float number(uint16_t bits) { return widened(bits); }

// A vector of floats, from as many floats or bfloat16.
inline Vector read(const float* from) { return load(from); }
inline Vector read(const uint16_t* from) {
  typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
  Halves halves;
  std::memcpy(&halves, from, sizeof(halves));
  return (Vector)(__builtin_convertvector(halves, Ints) << 16);
}

// Floats whose upper halves are the bfloat16 next to them.
inline Words rounded(Vector values) {
  const Words bits = (Words)values, up = bits + 0x7fff + (bits >> 16 & 1);  // to the nearest, ties to even
  return values == values ? up : (bits | 0x400000);                         // what is no number stays so
}

// Write the first `count` of a vector's floats, as they are or as bfloat16.
inline void write(float* to, Vector values, int64_t count) {
  if (count >= kLanes) return store(to, values);
  std::memcpy(to, &values, count * sizeof(float));
}
inline void write(uint16_t* to, Vector values, int64_t count) {
  typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
#if defined(__AVX512BF16__)
  const Halves halves = (Halves)_mm512_cvtneps_pbh((__m512)values);
#else
  const Halves halves = __builtin_convertvector(rounded(values) >> 16, Halves);
#endif
  if (count >= kLanes)
    std::memcpy(to, &halves, sizeof(halves));  // one store
  else
    std::memcpy(to, &halves, 2 * count);
}

struct Float32 {
  using Number = float;
  using Cell = float;  // of a sum
  using Sum = Vector;
  using Row = Vector;
  static constexpr int kGroup = 1;
  static constexpr bool kGrouped = false, kTiles = false;
  static Row row(const Number* from) { return load(from); }
  static float factor(const Number* from) { return *from; }
  static void add(Sum& sum, float factor, Row row) { sum += factor * row; }
};

struct BFloat16 {
  using Number = uint16_t;
  using Cell = float;
  using Sum = Vector;
  static constexpr int kGroup = 2;
  static constexpr bool kTiles = TILES;
#if defined(__AVX512BF16__)
  static constexpr bool kGrouped = true;
  using Row = __m512bh;
  static Row row(const Number* from) { return (Row)_mm512_loadu_si512(from); }
  static Row factor(const Number* from) {
    int pair;
    std::memcpy(&pair, from, 4);
    return (Row)_mm512_set1_epi32(pair);
  }
  static void add(Sum& sum, Row factor, Row row) { sum = (Sum)_mm512_dpbf16_ps((__m512)sum, factor, row); }
#else  // in float32, of half as many bytes
  static constexpr bool kGrouped = false;
  struct Row {
    Vector even, odd;
  };
  struct Factor {
    float even, odd;
  };
  static Row row(const Number* from) {
    const Ints pairs = load(reinterpret_cast<const int32_t*>(from));
    return {(Vector)(pairs << 16), (Vector)(pairs & splat(int32_t(0xffff0000)))};
  }
  static Factor factor(const Number* from) { return {widened(from[0]), widened(from[1])}; }
  static void add(Sum& sum, Factor factor, const Row& row) {
    sum += factor.even * row.even;  // each an instruction; the sum of both would take a third
    sum += factor.odd * row.odd;
  }
#endif
};

// Factors are unsigned, the numbers of rows signed; sums are exact.
struct Int8 {
  using Number = uint8_t;
  using Cell = int32_t;
  using Sum = Ints;
  using Row = Ints;
  static constexpr int kGroup = 4;
  static Row row(const Number* from) { return load(reinterpret_cast<const int32_t*>(from)); }
  static int32_t factor(const Number* from) {
    int32_t four;
    std::memcpy(&four, from, 4);
    return four;
  }
  static void add(Sum& sum, int32_t factor, Row row) {
#if defined(__AVX512VNNI__)
    sum = (Sum)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(factor), (__m512i)row);
#else
    for (int i = 0; i < 4; ++i) sum += (row << (24 - 8 * i) >> 24) * int32_t(uint32_t(factor) >> 8 * i & 255);
#endif
  }
#if defined(__AVX512VNNI__)
  static constexpr bool kGrouped = true, kTiles = TILES;
#else
  static constexpr bool kGrouped = false, kTiles = TILES;
#endif
};
