// The numbers that products are made of, and how a group of them is multiplied: the one place with a processor's own
// instructions. Each kind says how many numbers of a sum lie beside each other (`kGroup`), as the instructions want it,
// in how many parts they are multiplied (`kParts`), how many groups one sum can hold (`kMost`), and what multiplies
// them: instructions that add up a group (`kGrouped`), AMX's tile registers (`kTiles`).
#pragma once

#if defined(__AVX2__)
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

// Processors with AVX512-FP16, all of them Intel's so far, add up pairs of bfloat16 at half the rate of float32 (one
// instruction takes two cycles, where two of float32 take one), but pairs of int16 at twice that rate.
#if defined(__AVX512BF16__) && !defined(__AVX512FP16__)
#define PAIRS true
#else
#define PAIRS false
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

// The 32 bits of a group.
inline int32_t word(const void* from) {
  int32_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return bits;
}

// Sums begin with what is there, if it is added to, and end there; those of whole numbers may be kept as floats.
inline void begin_sum(Vector& sum, const float* from, bool add) { sum = add ? load(from) : Vector{}; }
inline void begin_sum(Ints& sum, const int32_t* from, bool add) { sum = add ? load(from) : Ints{}; }
inline void begin_sum(Ints& sum, const float*, bool) { sum = Ints{}; }
inline void end_sum(Vector sum, float* to, bool) { store(to, sum); }
inline void end_sum(Ints sum, int32_t* to, bool) { store(to, sum); }
inline void end_sum(Ints sum, float* to, bool add) {
  const Vector floats = __builtin_convertvector(sum, Vector);
  store(to, add ? load(to) + floats : floats);
}

struct Float32 {
  using Number = float;
  using Cell = float;  // of a sum
  using Sum = Vector;
  using Row = Vector;
  static constexpr int kGroup = 1, kParts = 1;
  static constexpr int64_t kMost = INT64_MAX;
  static constexpr bool kGrouped = false, kTiles = false;
  static Row row(const Number* from, int) { return load(from); }
  static float factor(const Number* from, int) { return *from; }
  static void add(Sum& sum, float factor, Row row) { sum += factor * row; }
};

struct BFloat16 {
  using Number = uint16_t;
  using Cell = float;
  using Sum = Vector;
  static constexpr int kGroup = 2;
  static constexpr int64_t kMost = INT64_MAX;
  static constexpr bool kTiles = TILES;
#if PAIRS
  static constexpr int kParts = 1;
  static constexpr bool kGrouped = true;
  using Row = __m512bh;
  static Row row(const Number* from, int) { return (Row)_mm512_loadu_si512(from); }
  static Row factor(const Number* from, int) { return (Row)_mm512_set1_epi32(word(from)); }
  static void add(Sum& sum, Row factor, Row row) { sum = (Sum)_mm512_dpbf16_ps((__m512)sum, factor, row); }
#else  // in float32, of half as many bytes
  static constexpr int kParts = 2;
  static constexpr bool kGrouped = false;
  using Row = Vector;
  static Row row(const Number* from, int part) { return one(load(reinterpret_cast<const int32_t*>(from)), part); }
  static Row factor(const Number* from, int part) { return one(splat(word(from)), part); }
  static void add(Sum& sum, Row factor, Row row) { sum += factor * row; }
  static Vector one(Ints pairs, int part) { return (Vector)(part == 0 ? pairs << 16 : pairs & splat(-0x10000)); }
#endif
};

// Add to sums what groups of whole numbers give with a factor's: four unsigned bytes with signed ones, or two of 16
// bits.
#if defined(__AVX512VNNI__)
#define VNNI true
inline Ints add_bytes(Ints sum, int32_t factor, Ints row) {
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(factor), (__m512i)row);
}
inline Ints add_halves(Ints sum, int32_t factor, Ints row) {
  return (Ints)_mm512_dpwssd_epi32((__m512i)sum, _mm512_set1_epi32(factor), (__m512i)row);
}
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
#define VNNI true
inline Ints add_bytes(Ints sum, int32_t factor, Ints row) {
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, _mm256_set1_epi32(factor), (__m256i)row);
}
inline Ints add_halves(Ints sum, int32_t factor, Ints row) {
  return (Ints)_mm256_dpwssd_avx_epi32((__m256i)sum, _mm256_set1_epi32(factor), (__m256i)row);
}
#else
#define VNNI false
inline Ints add_bytes(Ints sum, int32_t factor, Ints row) {
  for (int i = 0; i < 4; ++i) sum += (row << (24 - 8 * i) >> 24) * int32_t(uint32_t(factor) >> 8 * i & 255);
  return sum;
}
#if defined(__AVX2__) && !defined(__AVX512F__)
inline Ints add_halves(Ints sum, int32_t factor, Ints row) {
  return sum + (Ints)_mm256_madd_epi16(_mm256_set1_epi32(factor), (__m256i)row);
}
#else
inline Ints add_halves(Ints sum, int32_t factor, Ints row) {
  return sum + (row << 16 >> 16) * (int32_t(uint32_t(factor) << 16) >> 16) + (row >> 16) * (factor >> 16);
}
#endif
#endif

// Factors are unsigned, 128 too much (`kZero`), the numbers of rows signed; sums are exact, and factors rounded as by a
// division (`kExact`), so that products are those of JAX's own int8.
struct Int8 {
  using Number = uint8_t;
  using Cell = int32_t;
  using Sum = Ints;
  using Row = Ints;
  static constexpr int kGroup = 4, kParts = 1, kTop = 127, kZero = 128;
  static constexpr int64_t kMost = INT64_MAX;
  static constexpr bool kGrouped = VNNI, kTiles = TILES, kExact = true;
  static Row row(const Number* from, int) { return load(reinterpret_cast<const int32_t*>(from)); }
  static int32_t factor(const Number* from, int) { return word(from); }
  static void add(Sum& sum, int32_t factor, Row row) { sum = add_bytes(sum, factor, row); }
};

// Factors are whole numbers up to `kTop`, the numbers of rows up to half of it, so that 32 bits hold the sum of `kMost`
// groups; the sum of these is in floats.
struct Int16 {
  using Number = int16_t;
  using Cell = float;
  using Sum = Ints;
  using Row = Ints;
  static constexpr int kGroup = 2, kParts = 1, kTop = 4095, kZero = 0;
  static constexpr int64_t kMost = 128;
  static_assert(int64_t(kTop) * (kTop / 2) * kGroup * kMost <= INT32_MAX, "sums fit");
#if defined(__AVX2__) && !defined(__AVX512F__)
  static constexpr bool kGrouped = true;
#else
  static constexpr bool kGrouped = VNNI;
#endif
  static constexpr bool kTiles = false, kExact = false;
  static Row row(const Number* from, int) { return load(reinterpret_cast<const int32_t*>(from)); }
  static int32_t factor(const Number* from, int) { return word(from); }
  static void add(Sum& sum, int32_t factor, Row row) { sum = add_halves(sum, factor, row); }
};
