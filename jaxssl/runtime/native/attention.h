// Attention without its maps: the scores of a few frames at a time stay in the cache.
#pragma once

#include <cfloat>

#include "drop.h"
#include "product.h"

// What one head of one utterance attends with, all of (time, heads, size).
template <class Kind>
struct Head {
  const typename Kind::Number *queries, *keys, *values;
  typename Kind::Number* context;
  int64_t stride, size, time, seen;  // between frames; of a vector; frames, and those that are not padding
};

// Turn `scores` into exp(score − largest) and return 1 / their sum; those from `seen` on count for nothing.
inline float exponentials(float* scores, int64_t seen) {
  const int64_t padded = upto(seen, kLanes);
  std::fill(scores + seen, scores + padded, -FLT_MAX);
  Vector top = splat(-FLT_MAX);
  for (int64_t j = 0; j < padded; j += kLanes) top = larger(top, load(scores + j));
  float largest = top[0];
  for (int i = 1; i < kLanes; ++i) largest = std::max(largest, top[i]);
  Vector sums{};
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Vector weights = exponential(load(scores + j) - largest);
    store(scores + j, weights);
    sums += weights;
  }
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += sums[i];
  return 1 / sum;
}

// Pack a matrix of (depth, columns), whose numbers `at(row, column)` finds.
template <class Kind, class At>
void pack(typename Kind::Number* to, int64_t depth, int64_t columns, At at) {
  for (int64_t j = 0; j < columns; j += kPanel)
    for (int64_t k = 0; k < depth; k += Kind::kGroup)
      for (int64_t i = 0; i < kPanel; ++i)
        for (int64_t g = 0; g < Kind::kGroup; ++g)
          *to++ = k + g < depth && j + i < columns ? *at(k + g, j + i) : typename Kind::Number{};
}

// Let the frames from `begin` to `end` attend, a few at a time.
template <class Kind>
void attend(const Head<Kind>& head, int64_t begin, int64_t end, const Drop& drop) {
  using Number = typename Kind::Number;
  const int64_t stride = head.stride, size = head.size, seen = head.seen;
  const int64_t deep = upto(size, Kind::kGroup), long_ = upto(seen, Kind::kGroup);
  const int64_t padded = upto(seen, kPanel), wide = upto(size, kPanel);
  Number* keys = scratch<Number>(0, padded * deep + long_ * wide + kRows * (deep + padded));
  Number* values = keys + padded * deep;
  Number* queries = values + long_ * wide;
  Number* weights = queries + kRows * deep;
  float* scores = scratch<float>(1, kRows * (padded + wide));
  float* context = scores + kRows * padded;
  pack<Kind>(keys, size, seen, [&](int64_t d, int64_t j) { return head.keys + j * stride + d; });
  pack<Kind>(values, seen, size, [&](int64_t j, int64_t d) { return head.values + j * stride + d; });
  std::fill(queries, weights + kRows * padded, Number{});
  evenly(end - begin, kRows, [&](int64_t offset, int64_t rows) {
    const int64_t first = begin + offset;
    for (int64_t i = 0; i < rows; ++i) std::copy_n(head.queries + (first + i) * stride, size, queries + i * deep);
    for (int64_t j = 0; j < seen; j += kPanel)
      tile<Kind>(rows, std::min(kPanel, seen - j), Rows<Kind>{queries, deep}, {keys + j * deep, deep / Kind::kGroup},
                 scores + j, padded, false, {(const char*)queries, 0});
    float scales[kRows];
    for (int64_t i = 0; i < rows; ++i) {
      scales[i] = exponentials(scores + i * padded, seen);
      const Drop mine = drop.from((first + i) * head.time);
      for (int64_t j = 0; j < seen; j += kLanes)
        write(weights + i * padded + j, mine.left(load(scores + i * padded + j), j), seen - j);
    }
    for (int64_t d = 0; d < size; d += kPanel)
      tile<Kind>(rows, std::min(kPanel, size - d), Rows<Kind>{weights, padded},
                 {values + d * long_, long_ / Kind::kGroup}, context + d, wide, false, {(const char*)weights, 0});
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t d = 0; d < size; d += kLanes)
        write(head.context + (first + i) * stride + d, load(context + i * wide + d) * scales[i], size - d);
  });
}
