// Attention without its maps: the scores of a few frames at a time stay in the cache.
#pragma once

#include <cfloat>

#include "drop.h"
#include "linear.h"

// What one head of one utterance attends with, all of (time, heads, size).
template <class Kind>
struct Head {
  const typename Kind::Number *queries, *keys, *values;
  typename Kind::Number* context;
  int64_t stride, size, time, seen;  // between frames; of a vector; frames, and those that are not padding
};

// Return the largest of `seen` scores; whatever follows in the last vector counts for nothing from now on.
inline float largest_of(float* scores, int64_t seen) {
  const int64_t padded = upto(seen, kLanes);
  std::fill(scores + seen, scores + padded, -FLT_MAX);
  Vector top = splat(-FLT_MAX);
  for (int64_t j = 0; j < padded; j += kLanes) top = larger(top, load(scores + j));
  float largest = top[0];
  for (int i = 1; i < kLanes; ++i) largest = std::max(largest, top[i]);
  return largest;
}

// Turn `scores` into exp(score − largest) and return 1 / their sum.
inline float exponentials(float* scores, int64_t seen) {
  const float largest = largest_of(scores, seen);
  Vector sums{};
  for (int64_t j = 0; j < seen; j += kLanes) {
    const Vector weights = exponential(load(scores + j) - largest);
    store(scores + j, weights);
    sums += weights;
  }
  return 1 / total(sums);
}

// Pack rows of `size` numbers, `stride` apart, as a matrix of (rows, size).
template <class Kind>
void pack_along(const typename Kind::Number* from, int64_t stride, int64_t rows, int64_t size,
                typename Kind::Number* to) {
  const int64_t depth = upto(rows, Kind::kGroup);
  for (int64_t d = 0; d < size; d += kPanel)
    lay(from + d, stride, rows, std::min(kPanel, size - d), to + d * depth, kPanel);
}

// Pack their transpose, (size, rows).
template <class Kind>
void pack_across(const typename Kind::Number* from, int64_t stride, int64_t rows, int64_t size,
                 typename Kind::Number* to) {
  constexpr int64_t kGroup = Kind::kGroup;
  for (int64_t j = 0; j < rows; j += kPanel, from += kPanel * stride) {
    const int64_t here = std::min(kPanel, rows - j);
    if (size % kGroup == 0) {  // groups of a row are words
      transpose((const float*)from, stride / kGroup, here, size / kGroup, (float*)to, kPanel);
      to += size * kPanel;
      continue;
    }
    for (int64_t d = 0; d < size; d += kGroup)
      for (int64_t i = 0; i < kPanel; ++i)
        for (int64_t g = 0; g < kGroup; ++g)
          *to++ = d + g < size && i < here ? from[i * stride + d + g] : typename Kind::Number{};
  }
}

template <class Number>
void copy_rows(const Number* from, int64_t stride, int64_t rows, int64_t size, Number* to, int64_t wide) {
  for (int64_t i = 0; i < rows; ++i) std::copy_n(from + i * stride, size, to + i * wide);
}
inline void copy_rows(const uint16_t* from, int64_t stride, int64_t rows, int64_t size, float* to, int64_t wide) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t d = 0; d < size; ++d) to[i * wide + d] = widened(from[i * stride + d]);
}

// What a kind is multiplied as: one that is widened on every use is so once, for all of a head's products.
template <class Kind>
using Multiplied = std::conditional_t<Kind::kParts == 1, Kind, Float32>;

// Let the frames from `begin` to `end` attend, a few at a time.
template <class Kind>
void attend(const Head<Kind>& head, int64_t begin, int64_t end, const Drop& drop) {
  using Inner = Multiplied<Kind>;
  using Number = typename Inner::Number;
  const int64_t stride = head.stride, size = head.size, seen = head.seen;
  const int64_t deep = upto(size, Inner::kGroup), long_ = upto(seen, Inner::kGroup);
  const int64_t padded = upto(seen, kPanel), wide = upto(size, kPanel);
  Number* keys = scratch<Number>(0, padded * deep + long_ * wide + kRows * (deep + padded));
  Number* values = keys + padded * deep;
  Number* queries = values + long_ * wide;
  Number* weights = queries + kRows * deep;
  float* scores = scratch<float>(1, kRows * (padded + wide));
  float* context = scores + kRows * padded;
  if constexpr (std::is_same_v<Inner, Kind>) {
    pack_across<Inner>(head.keys, stride, seen, size, keys);
    pack_along<Inner>(head.values, stride, seen, size, values);
  } else {
    Number* wider = scratch<Number>(2, seen * size);
    copy_rows(head.keys, stride, seen, size, wider, size);
    pack_across<Inner>(wider, size, seen, size, keys);
    copy_rows(head.values, stride, seen, size, wider, size);
    pack_along<Inner>(wider, size, seen, size, values);
  }
  std::fill(queries, weights + kRows * padded, Number{});
  evenly(end - begin, kRows, [&](int64_t offset, int64_t rows) {
    const int64_t first = begin + offset;
    copy_rows(head.queries + first * stride, stride, rows, size, queries, deep);
    for (int64_t j = 0; j < seen; j += kPanel)
      tile<Inner>(rows, std::min(kPanel, seen - j), Rows<Inner>{queries, deep}, {keys + j * deep, deep / Inner::kGroup},
                  scores + j, padded, false, {(const char*)queries, 0});
    float scales[kRows];
    for (int64_t i = 0; i < rows; ++i) {
      scales[i] = exponentials(scores + i * padded, seen);
      const Drop mine = drop.from((first + i) * head.time);
      for (int64_t j = 0; j < seen; j += kLanes)
        write(weights + i * padded + j, mine.left(load(scores + i * padded + j), j), seen - j);
    }
    for (int64_t d = 0; d < size; d += kPanel)
      tile<Inner>(rows, std::min(kPanel, size - d), Rows<Inner>{weights, padded},
                  {values + d * long_, long_ / Inner::kGroup}, context + d, wide, false, {(const char*)weights, 0});
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t d = 0; d < size; d += kLanes)
        write(head.context + (first + i) * stride + d, load(context + i * wide + d) * scales[i], size - d);
  });
}
