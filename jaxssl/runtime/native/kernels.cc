// Parts of a forward pass that XLA's CPU code spreads badly over threads: attention without its maps, dense maps of few
// frames, and factorised ones. They give what the plain formulation gives, but for rounding (tests/test_native.py).
//
// Everything rests on `tile`, a small product whose sums stay in registers, written with the vector extensions of GCC
// and Clang: one source for AVX-512, AVX2, SSE and NEON.

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;

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
constexpr int kPanel = kVectors * kLanes;  // columns of a tile
constexpr int64_t kLine = 16;              // floats of a cache line
constexpr int64_t kDepth = 256;            // terms of a sum that are added up before the next tile's turn
constexpr int64_t kChunk = 96;             // rows of a factorised map whose middle stays in the cache
constexpr int64_t kShare = 24;             // rows of a factorised map that are worth another thread

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef float Unaligned __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t Bits __attribute__((vector_size(4 * kLanes)));

inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Unaligned*>(to) = value; }
inline Vector splat(float value) { return value - Vector{}; }
inline Vector larger(Vector a, Vector b) { return a < b ? b : a; }  // a, where it is no number

// exp(x) for x <= 0 by Cephes' expf: a power of two, and a polynomial for what is left of x.
inline Vector exponential(Vector x) {
  x = larger(x, splat(-87.0f));
  const Vector magic = splat(12582912.0f);  // 1.5 × 2^23: adding it rounds to a whole number, in the low bits
  Vector whole = x * 1.44269504f + magic;
  const Bits power = (Bits)whole << 23;  // of vectors a cast keeps the bits
  whole -= magic;
  const Vector rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;  // ln 2 in two parts
  Vector y = splat(1.9875691500e-4f);
  for (const float term : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    y = y * rest + term;
  y = y * rest * rest + rest + 1.0f;
  return (Vector)((Bits)y + power);
}

struct Factor {
  const float* data;
  int64_t stride;  // between rows, here and below
};
struct Result {
  float* data;
  int64_t stride;
};

// c = a · b, or c += a · b, for a of (height, depth) and b of (depth, width × kLanes). Meanwhile a line of each of
// depth / 2 rows is fetched from `next`, which has b's stride.
template <int height, int width>
void tile(Factor a, Factor b, int64_t depth, Result c, bool add, const float* next) {
  Vector sums[height][width];
#pragma GCC unroll 6
  for (int i = 0; i < height; ++i)
    for (int j = 0; j < width; ++j) sums[i][j] = add ? load(c.data + i * c.stride + j * kLanes) : Vector{};
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k, ++a.data, b.data += b.stride) {
    if (k % 2 == 0) {
      __builtin_prefetch(next);
      next += b.stride;
    }
    Vector row[width];
    for (int j = 0; j < width; ++j) row[j] = load(b.data + j * kLanes);
#pragma GCC unroll 6
    for (int i = 0; i < height; ++i)
      for (int j = 0; j < width; ++j) sums[i][j] += a.data[i * a.stride] * row[j];
  }
#pragma GCC unroll 6
  for (int i = 0; i < height; ++i)
    for (int j = 0; j < width; ++j) store(c.data + i * c.stride + j * kLanes, sums[i][j]);
}

template <int width>
void tile(int height, Factor a, Factor b, int64_t depth, Result c, bool add, const float* next) {
  switch (height) {
    case 6: return tile<6, width>(a, b, depth, c, add, next);
    case 5: return tile<5, width>(a, b, depth, c, add, next);
    case 4: return tile<4, width>(a, b, depth, c, add, next);
    case 3: return tile<3, width>(a, b, depth, c, add, next);
    case 2: return tile<2, width>(a, b, depth, c, add, next);
    case 1: return tile<1, width>(a, b, depth, c, add, next);
  }
}

// The same for a width of `columns`, a multiple of kLanes and kPanel at most.
void tile(int height, int64_t columns, Factor a, Factor b, int64_t depth, Result c, bool add, const float* next) {
  switch (columns / kLanes) {
    case 1: return tile<1>(height, a, b, depth, c, add, next);
    case 2: return tile<2>(height, a, b, depth, c, add, next);
    case 3: return tile<std::min(3, kVectors)>(height, a, b, depth, c, add, next);
    case 4: return tile<std::min(4, kVectors)>(height, a, b, depth, c, add, next);
  }
}

// Call `work(begin, size)` on parts of `count` that differ by one at most and are no larger than `most`.
template <class Work>
void evenly(int64_t count, int64_t most, Work work) {
  const int64_t parts = (count + most - 1) / most;
  for (int64_t i = 0; i < parts; ++i) work(count * i / parts, count * (i + 1) / parts - count * i / parts);
}

// Columns of a panel that begins at `j`.
int64_t width(int64_t j, int64_t columns) { return std::min<int64_t>(kPanel, columns - j); }

int64_t aligned(int64_t columns) { return (columns + kLanes - 1) / kLanes * kLanes; }

// c = a · b, or c += a · b, for a of (rows, depth) and b of (depth, columns), columns a multiple of kLanes. The weights
// that come next, after the last of them those at `after`, are fetched a little with each tile: memory is slower than a
// few rows' multiplications.
void product(Factor a, Factor b, int64_t depth, Result c, int64_t rows, int64_t columns, bool add, const float* after) {
  for (int64_t j = 0; j < columns; j += kPanel) {
    const int64_t wide = width(j, columns), lines = (wide + kLine - 1) / kLine;
    for (int64_t k = 0; k < depth; k += kDepth) {
      const int64_t terms = std::min(kDepth, depth - k);
      const float* now = b.data + k * b.stride + j;
      const float* next = k + kDepth < depth     ? now + kDepth * b.stride
                          : j + kPanel < columns ? b.data + j + kPanel
                                                 : after;
      int64_t turn = 0;  // two for each line: the first and the second half of the rows
      evenly(rows, kRows, [&](int64_t i, int64_t height) {
        const float* wanted = next + turn / 2 * kLine + turn % 2 * (terms / 2) * b.stride;
        tile(height, wide, {a.data + i * a.stride + k, a.stride}, {now, b.stride}, terms,
             {c.data + i * c.stride + j, c.stride}, add || k > 0, turn < 2 * lines ? wanted : now);
        ++turn;
      });
    }
  }
}

// This thread's memory for intermediate results, at the beginning of a cache line.
float* scratch(int64_t size) {
  thread_local std::vector<float> memory;
  if (memory.size() < size_t(size) + 16) memory.resize(size + 16);
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  return memory.data() + (64 - address % 64) % 64 / sizeof(float);
}

// Tasks that the caller and the threads of XLA's pool take in turns. The caller waits for those only that somebody has
// begun, so that it cannot wait for a thread that waits likewise; one that comes late finds nothing left.
template <class Work>
struct Queue {
  Queue(Work work, int64_t tasks) : work(work), tasks(tasks) {}
  void run() {
    for (int64_t task; (task = next++) < tasks; ++done) work(task);
  }
  const Work work;
  const int64_t tasks;
  std::atomic<int64_t> next{0}, done{0};
};

int64_t threads(ffi::ThreadPool& pool) { return std::max<int64_t>(1, pool.num_threads()); }

template <class Work>
void share(ffi::ThreadPool& pool, int64_t tasks, Work work) {
  auto queue = std::make_shared<Queue<Work>>(work, tasks);
  for (int64_t i = 1; i < std::min(threads(pool), tasks); ++i) pool.Schedule([queue] { queue->run(); });
  queue->run();
  while (queue->done < tasks) std::this_thread::yield();
}

// What one head of one utterance attends with, all of (time, heads, size).
struct Head {
  const float *queries, *keys, *values;
  float* context;
  int64_t stride, size, seen;  // between frames; of a vector; keys that are not padding
};

// Turn `scores` into exp(score − largest) and return 1 / their sum; those from `seen` to `padded` count for nothing.
float exponentials(float* scores, int64_t seen, int64_t padded) {
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

// Write a matrix of (rows, columns) as panels of (rows, width), one after the other, the last one filled up with zeros.
// `at(row, column)` says where a number is.
template <class At>
void pack(float* to, int64_t rows, int64_t columns, At at) {
  for (int64_t j = 0; j < columns; j += kPanel) {
    const int64_t wide = width(j, aligned(columns)), given = std::min(wide, columns - j);
    for (int64_t k = 0; k < rows; ++k, to += wide) {
      for (int64_t i = 0; i < given; ++i) to[i] = *at(k, j + i);
      std::fill(to + given, to + wide, 0.0f);
    }
  }
}

// Let the frames from `begin` to `end` attend, a few at a time, so that their scores stay in the cache.
void attend(const Head& head, int64_t begin, int64_t end) {
  const int64_t stride = head.stride, size = head.size, seen = head.seen;
  const int64_t padded = aligned(seen), wide = aligned(size);
  float* keys = scratch(padded * size + seen * wide + kRows * (padded + wide));
  float* values = keys + padded * size;
  float* scores = values + seen * wide;
  float* context = scores + kRows * padded;
  pack(keys, size, seen, [&](int64_t d, int64_t j) { return head.keys + j * stride + d; });
  pack(values, seen, size, [&](int64_t j, int64_t d) { return head.values + j * stride + d; });
  evenly(end - begin, kRows, [&](int64_t offset, int64_t rows) {
    const int64_t first = begin + offset;
    const Factor queries{head.queries + first * stride, stride};
    for (int64_t j = 0; j < padded; j += kPanel)
      tile(rows, width(j, padded), queries, {keys + j * size, width(j, padded)}, size, {scores + j, padded}, false,
           keys);
    float scales[kRows];
    for (int64_t i = 0; i < rows; ++i) scales[i] = exponentials(scores + i * padded, seen, padded);
    for (int64_t d = 0; d < wide; d += kPanel)
      tile(rows, width(d, wide), {scores, padded}, {values + d * seen, width(d, wide)}, seen, {context + d, wide},
           false, values);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t d = 0; d < size; ++d) head.context[(first + i) * stride + d] = context[i * wide + d] * scales[i];
  });
}

// q, k, v and the context are (batch, time, heads, size); keys from lengths[batch] on are padding.
ffi::Error Attention(ffi::ThreadPool pool, Floats q, Floats k, Floats v, ffi::Buffer<ffi::S32> lengths,
                     ffi::ResultBuffer<ffi::F32> context) {
  const auto shape = q.dimensions();
  const int64_t batch = shape[0], time = shape[1], heads = shape[2], size = shape[3], count = batch * heads;
  if (count == 0) return ffi::Error::Success();
  // Few heads on many threads: some let their frames attend in several pieces, each with keys and values of its own.
  const int64_t pieces = std::min(time, threads(pool) == 1 ? 1 : (2 * threads(pool) + count - 1) / count);
  const float *queries = q.typed_data(), *keys = k.typed_data(), *values = v.typed_data();
  const int32_t* valid = lengths.typed_data();
  float* out = context->typed_data();
  share(pool, count * pieces, [=](int64_t task) {
    const int64_t piece = task % pieces, head = task / pieces % heads, row = task / pieces / heads;
    const int64_t at = row * time * heads * size + head * size;
    const int64_t seen = valid[row] > 0 ? valid[row] : time;  // a row that only fills a batch: anything finite
    attend(Head{queries + at, keys + at, values + at, out + at, heads * size, size, seen}, time * piece / pieces,
           time * (piece + 1) / pieces);
  });
  return ffi::Error::Success();
}

// y = x · kernel + bias for x of (rows, inputs) and kernel of (inputs, outputs); any axes more in front and behind are
// taken together, here and below.
ffi::Error Dense(ffi::ThreadPool pool, Floats x, Floats kernel, Floats bias, ffi::ResultBuffer<ffi::F32> y) {
  const int64_t outputs = bias.element_count(), inputs = kernel.element_count() / outputs;
  const int64_t rows = x.element_count() / inputs, ahead = threads(pool) * kPanel;
  const float *in = x.typed_data(), *weights = kernel.typed_data(), *shift = bias.typed_data();
  float* out = y->typed_data();
  share(pool, (outputs + kPanel - 1) / kPanel, [=](int64_t task) {  // each thread reads weights of its own only
    const int64_t j = task * kPanel, columns = std::min<int64_t>(kPanel, outputs - j);
    for (int64_t i = 0; i < rows; ++i) std::memcpy(out + i * outputs + j, shift + j, columns * sizeof(float));
    product({in, inputs}, {weights + j, outputs}, inputs, {out + j, outputs}, rows, columns, true,
            weights + (j + ahead < outputs ? j + ahead : j));
  });
  return ffi::Error::Success();
}

// y = x · down · up + bias for x of (rows, inputs), down of (inputs, rank), up of (rank, outputs).
ffi::Error Factored(ffi::ThreadPool pool, Floats x, Floats down, Floats up, Floats bias,
                    ffi::ResultBuffer<ffi::F32> y) {
  const int64_t rank = up.dimensions()[0], inputs = down.element_count() / rank, outputs = bias.element_count();
  const int64_t rows = x.element_count() / inputs;
  const int64_t tasks = std::min(threads(pool), (rows + kShare - 1) / kShare);
  const float *in = x.typed_data(), *first = down.typed_data(), *second = up.typed_data(), *shift = bias.typed_data();
  float* out = y->typed_data();
  share(pool, tasks, [=](int64_t task) {
    const int64_t begin = rows * task / tasks, end = rows * (task + 1) / tasks;
    float* middle = scratch(kChunk * rank);
    evenly(end - begin, kChunk, [&](int64_t offset, int64_t count) {
      const float* from = in + (begin + offset) * inputs;
      float* to = out + (begin + offset) * outputs;
      product({from, inputs}, {first, rank}, inputs, {middle, rank}, count, rank, false, second);
      for (int64_t i = 0; i < count; ++i) std::memcpy(to + i * outputs, shift, outputs * sizeof(float));
      product({middle, rank}, {second, outputs}, rank, {to, outputs}, count, outputs, true, first);
    });
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(attention, Attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    factored, Factored,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    dense, Dense, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Ret<Floats>());
