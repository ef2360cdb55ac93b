// Vectors of floats by the extensions of GCC and Clang: one source for AVX-512, AVX2, SSE and NEON.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

// A tile of kRows × kVectors sums, its row of kVectors and one factor must fit the processor's 32 or 16 registers.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kVectors = 4;
#elif defined(__AVX__)
constexpr int kLanes = 8, kVectors = 2;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kVectors = 4;
#else
constexpr int kLanes = 4, kVectors = 2;
#endif
constexpr int kRows = 6;

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef float Unaligned __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef int32_t UnalignedInts __attribute__((vector_size(4 * kLanes), aligned(1), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Unaligned*>(to) = value; }
inline Ints load(const int32_t* from) { return *reinterpret_cast<const UnalignedInts*>(from); }
inline void store(int32_t* to, Ints value) { *reinterpret_cast<UnalignedInts*>(to) = value; }
inline Vector splat(float value) { return value - Vector{}; }
inline Ints splat(int32_t value) { return value - Ints{}; }
inline Vector larger(Vector a, Vector b) { return a < b ? b : a; }  // a, where it is no number
inline Vector smaller(Vector a, Vector b) { return a > b ? b : a; }

// The sum of a vector's floats.
inline float total(Vector values) {
  for (int half = kLanes / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) values[i] += values[i + half];
  return values[0];
}

// exp(x) for x <= 0 by Cephes' expf: a power of two, and a polynomial for what is left of x.
inline Vector exponential(Vector x) {
  x = larger(x, splat(-87.0f));
  const Vector magic = splat(12582912.0f);  // 1.5 × 2^23: adding it rounds to a whole number, in the low bits
  Vector whole = x * 1.44269504f + magic;
  const Ints power = (Ints)whole << 23;  // of vectors a cast keeps the bits
  whole -= magic;
  const Vector rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;  // ln 2 in two parts
  Vector y = splat(1.9875691500e-4f);
  for (const float term : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    y = y * rest + term;
  y = y * rest * rest + rest + 1.0f;
  return (Vector)((Ints)y + power);
}

// The exact GELU, x · (1 + erf(x / √2)) / 2, its erf the quotient of polynomials that XLA and Eigen have.
inline Vector gelu(Vector x) {
  const Vector z = smaller(larger(x * 0.70710678f, splat(-3.832506856900711f)), splat(3.832506856900711f));
  const Vector square = z * z;
  Vector above = splat(0.00022905065861350646f), below = splat(-1.1791602954361697e-7f);
  for (const float term : {0.0034082910107109506f, 0.050955695062380861f, 0.18520832239976145f, 1.128379143519084f})
    above = above * square + term;
  for (const float term : {0.000023547966471313185f, 0.0010179625278914885f, 0.014070470171167667f,
                           0.11098505178285362f, 0.49746925110067538f, 1.0f})
    below = below * square + term;
  return 0.5f * x * (1.0f + z * above / below);
}
