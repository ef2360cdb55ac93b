// Dense maps whose weights training changes: they are packed on every run, and have gradients.
#pragma once

#include <cstdlib>

#include "map.h"

// Memory for a call, at the beginning of a cache line.
template <class Number>
std::shared_ptr<Number> memory(int64_t size) {
  const int64_t bytes = (size * sizeof(Number) + 63) / 64 * 64;
  return {static_cast<Number*>(std::aligned_alloc(64, std::max<int64_t>(64, bytes))),
          [](Number* at) { std::free(at); }};
}

// Two rows' numbers of a column beside each other, as bfloat16.
inline Words paired(const uint16_t* even, const uint16_t* odd) {
  typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
  Halves low, high;
  std::memcpy(&low, even, sizeof(low));
  std::memcpy(&high, odd, sizeof(high));
  return __builtin_convertvector(low, Words) | __builtin_convertvector(high, Words) << 16;
}
inline Words paired(const float* even, const float* odd) {
  return rounded(load(even)) >> 16 | (rounded(load(odd)) & 0xffff0000u);
}

// Lay rows of `columns` numbers, `stride` apart, out as groups of `wide` columns: a panel has kPanel.
inline void lay(const float* from, int64_t stride, int64_t rows, int64_t columns, float* to, int64_t wide) {
  for (int64_t k = 0; k < rows; ++k, from += stride, to += wide) {
    std::copy_n(from, columns, to);
    std::fill(to + columns, to + wide, 0.0f);
  }
}
template <class Number>
void lay(const Number* from, int64_t stride, int64_t rows, int64_t columns, uint16_t* to, int64_t wide) {
  const Number nothing[kLanes] = {};
  for (int64_t k = 0; k < rows; k += 2, from += 2 * stride, to += 2 * wide)
    for (int64_t j = 0; j < wide; j += kLanes) {
      Number even[kLanes] = {}, odd[kLanes] = {};
      const int64_t here = std::min<int64_t>(kLanes, columns - j);
      const bool whole = here == kLanes;
      if (!whole && here > 0) std::copy_n(from + j, here, even);
      if (!whole && here > 0 && k + 1 < rows) std::copy_n(from + stride + j, here, odd);
      const Words pairs = paired(whole ? from + j : even, !whole ? odd : k + 1 < rows ? from + stride + j : nothing);
      std::memcpy(to + 2 * j, &pairs, sizeof(pairs));
    }
}

// Lay the transpose of `columns` rows of `depth` floats, `stride` apart, out as a panel.
inline void lay_across(const float* from, int64_t stride, int64_t depth, int64_t columns, float* to) {
  constexpr int64_t kNear = 16;
  if (columns < kPanel) std::fill_n(to, depth * kPanel, 0.0f);
  for (int64_t k = 0; k < depth; k += kNear)
    for (int64_t j = 0; j < columns; ++j)
      for (int64_t l = k; l < std::min(depth, k + kNear); ++l) to[l * kPanel + j] = from[j * stride + l];
}
inline void lay_across(const float* from, int64_t stride, int64_t depth, int64_t columns, uint16_t* to) {
  std::fill_n(to, upto(depth, 2) * kPanel, uint16_t{});
  for (int64_t j = 0; j < columns; ++j, from += stride, to += 2)
    for (int64_t k = 0; k < depth; k += kLanes) {
      uint16_t halves[kLanes] = {};
      float floats[kLanes] = {};
      std::copy_n(from + k, std::min<int64_t>(kLanes, depth - k), floats);
      write(halves, load(floats), kLanes);
      for (int64_t l = 0; l < kLanes && k + l < depth; l += 2)
        std::memcpy(to + (k + l) * kPanel, halves + l, 2 * sizeof(uint16_t));
    }
}

// sums (rows, columns) += left' · right for `depth` frames of both, where sums lie in rows of `wide`.
template <class Kind>
void outer(const typename Kind::Number* left, int64_t left_stride, int64_t rows, const typename Kind::Number* right,
           int64_t right_stride, int64_t columns, int64_t depth, float* sums, int64_t wide, bool add) {
  using Number = typename Kind::Number;
  const int64_t groups = (depth + Kind::kGroup - 1) / Kind::kGroup, tall = upto(rows, kLanes);
  const int64_t across = upto(columns, kPanel);
  Number* one = scratch<Number>(0, groups * Kind::kGroup * tall);
  Number* two = scratch<Number>(1, groups * Kind::kGroup * across);
  lay(left, left_stride, depth, rows, one, tall);
  for (int64_t j = 0; j < columns; j += kPanel)
    lay(right + j, right_stride, depth, std::min(kPanel, columns - j), two + j * groups * Kind::kGroup, kPanel);
  for (int64_t j = 0; j < columns; j += kPanel) {
    const Panel<Kind> panel{two + j * groups * Kind::kGroup, groups};
    evenly(rows, kRows, [&](int64_t i, int64_t height) {
      tile<Kind>(height, std::min(kPanel, columns - j), Columns<Kind>{one + i * Kind::kGroup, tall * Kind::kGroup},
                 panel, sums + i * wide + j, wide, add, {(const char*)panel.data, 0});
    });
  }
}

// Sum the first `columns` numbers of rows that lie `stride` apart.
template <class Number>
void sum_rows(const Number* from, int64_t stride, int64_t rows, int64_t columns, float* to) {
  std::fill_n(to, columns, 0.0f);
  for (int64_t i = 0; i < rows; ++i, from += stride)
    for (int64_t j = 0; j < columns; ++j) to[j] += number(from[j]);
}
