// Products of weights in whole numbers, int8 or int16, with what is quantised as it comes, each row with a scale of its
// own.
#pragma once

#include <limits>

#include "buffers.h"
#include "linear.h"

namespace {

// Return the largest absolute value, which is no number where one is none: bits of floats without a sign are in the
// order of their values, and those of what is no number are above all.
template <class Number>
float largest_magnitude(const Number* x, int64_t count) {
  using Bits = std::conditional_t<sizeof(Number) == 4, uint32_t, uint16_t>;
  typedef Bits Many __attribute__((vector_size(4 * kLanes)));
  constexpr int64_t kFew = sizeof(Many) / sizeof(Bits);
  constexpr Bits kUnsigned = Bits(~Bits{}) >> 1;
  Many top{};
  int64_t k = 0;
  for (; k + kFew <= count; k += kFew) {
    Many some;
    std::memcpy(&some, x + k, sizeof(some));
    some &= kUnsigned;
    top = some > top ? some : top;
  }
  Bits most = 0;
  for (int64_t i = 0; k > 0 && i < kFew; ++i) most = std::max<Bits>(most, top[i]);
  for (; k < count; ++k) {
    Bits some;
    std::memcpy(&some, x + k, sizeof(some));
    most = std::max<Bits>(most, some & kUnsigned);
  }
  Number largest;
  std::memcpy(&largest, &most, sizeof(largest));
  return number(largest);
}

// Turn windows of `inputs` numbers, `stride` apart, into whole numbers from -kTop to kTop, kZero added, in lines of
// `wide`, and tell each one's scale.
template <class Whole, class Number>
void quantise(const Number* x, int64_t stride, int64_t rows, int64_t inputs, int64_t wide, typename Whole::Number* to,
              float* scales) {
  typedef typename Whole::Number Few __attribute__((vector_size(kLanes * sizeof(typename Whole::Number))));
  constexpr float kBits = 12582912.0f + Whole::kZero;  // 1.5 × 2^23 brings a whole number into the low bits, to even
  const int64_t whole = inputs / kLanes * kLanes;
  for (int64_t i = 0; i < rows; ++i, x += stride, to += wide) {
    const float largest = largest_magnitude(x, inputs), step = largest / Whole::kTop;
    const float scale = step < std::numeric_limits<float>::min() ? 1.0f : step;
    scales[i] = scale + (largest - largest);  // no number, where the largest is none, or infinite
    const Vector divisor = splat(scale), inverse = splat(1.0f / scale);
    const auto put = [&](const Number* from, typename Whole::Number* at, int64_t count) {
      const Vector some = read(from);
      Vector bits = some * inverse + kBits;
      if constexpr (Whole::kExact) {  // a quotient and what it leaves: a division takes three times as long
        const Vector near = some * inverse;
        bits = near + (some - near * divisor) * inverse + kBits;
      }
      const Few few = __builtin_convertvector((Ints)bits, Few);
      std::memcpy(at, &few, count * sizeof(typename Whole::Number));
    };
    for (int64_t k = 0; k < whole; k += kLanes) put(x + k, to + k, kLanes);
    if (whole == wide) continue;
    Number left[kLanes] = {};  // what is no whole vector
    std::copy(x + whole, x + inputs, left);
    put(left, to + whole, wide - whole);
  }
}

// A matrix of whole numbers as it is packed, with a scale each column. Before the numbers of a panel there are as many
// of 32 bits as it has columns: in int8, whose factors are kZero too much, what that adds, -kZero times the sum of each
// column; in int16 the scales.
template <class Whole>
struct Weights {
  const typename Whole::Number* packed;
  int64_t rows;        // of a panel, those before its numbers too
  const float* scale;  // of each column, in int8
  int64_t columns;
  int64_t panels() const { return (columns + kPanel - 1) / kPanel; }
  int64_t wide() const { return rows - kHead; }
  const typename Whole::Number* panel(int64_t j) const { return packed + j * rows * kPanel; }
};

inline Weights<Int8> weights_of(const ffi::Buffer<ffi::S8>& packed, const ffi::Buffer<ffi::F32>& scale) {
  return {reinterpret_cast<const uint8_t*>(packed.typed_data()), packed.dimensions()[2], scale.typed_data(),
          int64_t(scale.element_count())};
}
inline Weights<Int16> weights_of(const ffi::Buffer<ffi::S16>& packed, int64_t columns) {
  return {packed.typed_data(), packed.dimensions()[2], nullptr, columns};
}

inline Vector floats(Vector sums) { return sums; }
inline Vector floats(Ints sums) { return __builtin_convertvector(sums, Vector); }

// Write activation(numbers · panel j + bias) to the panel's columns of rows that lie `stride` apart; numbers are
// quantised with these scales. What is at `after` is fetched meanwhile.
template <class Whole, class Number>
void map_panel(const typename Whole::Number* numbers, const float* scales, int64_t rows, const Weights<Whole>& weights,
               int64_t j, const float* bias, int64_t activation, Number* to, int64_t stride,
               const typename Whole::Number* after) {
  constexpr bool kShifted = Whole::kZero != 0;
  const int64_t here = std::min(kPanel, weights.columns - j * kPanel), wide = weights.wide();
  const auto* panel = weights.panel(j);
  auto* sums = scratch<typename Whole::Cell>(2, kTall * kPanel);
  float gains[kPanel] = {};
  if (kShifted)
    std::copy_n(weights.scale + j * kPanel, here, gains);
  else
    std::memcpy(gains, panel, sizeof(gains));
  for (int64_t i = 0; kShifted && i < rows; ++i) std::memcpy(sums + i * kPanel, panel, kPanel * sizeof(*sums));
  multiply<Whole>({numbers, wide}, {panel + kHead * kPanel, wide / Whole::kGroup}, sums, rows, here, kShifted, after);
  const auto value = [&](int64_t i, int64_t c) {
    return floats(load(sums + i * kPanel + c)) * splat(scales[i]) * load(gains + c);
  };
  finish(value, rows, here, bias + j * kPanel, activation, to + j * kPanel, stride);
}

// y (batch, rows, outputs) = activation(windows of x · weights + bias) for x of (batch, numbers), whose windows of
// `inputs` numbers begin `stride` apart.
template <class Kind, class Whole>
ffi::Error product(ffi::ThreadPool& pool, Buffer<Kind>& x, const Weights<Whole>& weights, ffi::Buffer<ffi::F32>& bias,
                   Result<Kind>& y, int64_t inputs, int64_t stride, int64_t activation) {
  using Few = typename Whole::Number;
  const auto shape = y->dimensions();
  const int64_t batch = shape[0], each = shape[1], outputs = shape[2], rows = batch * each;
  if (rows * outputs == 0) return ffi::Error::Success();
  const int64_t length = x.element_count() / batch, wide = weights.wide();
  const int64_t panels = weights.panels(), ahead = threads(pool), pieces = pieces_of_rows<Whole>(rows, panels, ahead);
  const auto* in = x.typed_data();
  const float* shift = bias.typed_data();
  auto* out = y->typed_data();
  const auto all = memory<Few>(rows * wide);
  const auto gains = memory<float>(rows);
  Few* numbers = all.get();
  float* scales = gains.get();
  constexpr int64_t kShare = 8;  // rows that are worth another thread
  const int64_t parts = std::min(4 * threads(pool), (each + kShare - 1) / kShare);
  share(pool, batch * parts, [=](int64_t task) {
    const int64_t part = task % parts, row = task / parts, begin = each * part / parts, at = row * each + begin;
    quantise<Whole>(in + row * length + begin * stride, stride, each * (part + 1) / parts - begin, inputs, wide,
                    numbers + at * wide, scales + at);
  });
  share(pool, pieces * panels, [=](int64_t task) {
    const int64_t j = task % panels, piece = task / panels;
    const int64_t begin = rows * piece / pieces, count = rows * (piece + 1) / pieces - begin;
    map_panel(numbers + begin * wide, scales + begin, count, weights, j, shift, activation, out + begin * outputs,
              outputs, weights.panel(j + ahead < panels ? j + ahead : j));
  });
  return ffi::Error::Success();
}

// y (rows, outputs) = activation(x · first · second + bias), x and the middle quantised as they come, a few rows of
// which stay in the cache.
template <class Kind, class Whole>
ffi::Error factored(ffi::ThreadPool& pool, Buffer<Kind>& x, const Weights<Whole>& first, const Weights<Whole>& second,
                    ffi::Buffer<ffi::F32>& bias, Result<Kind>& y, int64_t activation) {
  using Number = typename Kind::Number;
  using Few = typename Whole::Number;
  constexpr int64_t kShare = 24;  // rows that are worth another thread
  if (y->element_count() == 0) return ffi::Error::Success();
  const int64_t outputs = second.columns, rank = first.columns, rows = y->element_count() / outputs;
  const int64_t inputs = x.element_count() / rows, tasks = std::min(threads(pool), (rows + kShare - 1) / kShare);
  const auto* in = x.typed_data();
  const float* shift = bias.typed_data();
  auto* out = y->typed_data();
  share(pool, tasks, [=](int64_t task) {
    const int64_t begin = rows * task / tasks, end = rows * (task + 1) / tasks;
    const int64_t widest = std::max(first.wide(), second.wide());
    Few* numbers = scratch<Few>(1, kTall * widest);
    Number* middle = scratch<Number>(0, kTall * rank);
    const std::vector<float> nothing(rank);
    float scales[kTall];
    evenly(end - begin, kTall, [&](int64_t offset, int64_t count) {
      const auto mapped = [&](const Number* from, int64_t fan_in, const Weights<Whole>& weights, const float* added,
                              int64_t last, Number* to, const Few* after) {
        quantise<Whole>(from, fan_in, count, fan_in, weights.wide(), numbers, scales);
        for (int64_t j = 0, panels = weights.panels(); j < panels; ++j)
          map_panel(numbers, scales, count, weights, j, added, last, to, weights.columns,
                    j + 1 < panels ? weights.panel(j + 1) : after);
      };
      const int64_t row = begin + offset;
      mapped(in + row * inputs, inputs, first, nothing.data(), kLinear, middle, second.packed);
      mapped(middle, rank, second, shift, activation, out + row * outputs, first.packed);
    });
  });
  return ffi::Error::Success();
}

template <class Kind>
ffi::Error ProductInt8(ffi::ThreadPool pool, Buffer<Kind> x, ffi::Buffer<ffi::S8> packed, ffi::Buffer<ffi::F32> scale,
                       ffi::Buffer<ffi::F32> bias, Result<Kind> y, int64_t inputs, int64_t stride, int64_t activation) {
  return product<Kind, Int8>(pool, x, weights_of(packed, scale), bias, y, inputs, stride, activation);
}

template <class Kind>
ffi::Error FactoredInt8(ffi::ThreadPool pool, Buffer<Kind> x, ffi::Buffer<ffi::S8> down,
                        ffi::Buffer<ffi::F32> down_scale, ffi::Buffer<ffi::S8> up, ffi::Buffer<ffi::F32> up_scale,
                        ffi::Buffer<ffi::F32> bias, Result<Kind> y, int64_t activation) {
  return factored<Kind, Int8>(pool, x, weights_of(down, down_scale), weights_of(up, up_scale), bias, y, activation);
}

// The same in bfloat16 of weights that are packed as int16.
inline ffi::Error ProductInt16(ffi::ThreadPool pool, Buffer<BFloat16> x, ffi::Buffer<ffi::S16> packed,
                               ffi::Buffer<ffi::F32> bias, Result<BFloat16> y, int64_t inputs, int64_t stride,
                               int64_t activation) {
  const auto weights = weights_of(packed, bias.element_count());
  return product<BFloat16, Int16>(pool, x, weights, bias, y, inputs, stride, activation);
}

inline ffi::Error FactoredInt16(ffi::ThreadPool pool, Buffer<BFloat16> x, ffi::Buffer<ffi::S16> down,
                                ffi::Buffer<ffi::S16> up, ffi::Buffer<ffi::F32> bias, Result<BFloat16> y,
                                int64_t activation) {
  const auto second = weights_of(up, bias.element_count());
  return factored<BFloat16, Int16>(pool, x, weights_of(down, second.wide()), second, bias, y, activation);
}

template <class Kind>
auto int8_of() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Buffer<Kind>>()
      .template Arg<ffi::Buffer<ffi::S8>>()
      .template Arg<ffi::Buffer<ffi::F32>>()
      .template Arg<ffi::Buffer<ffi::F32>>()
      .template Ret<Buffer<Kind>>()
      .template Attr<int64_t>("inputs")
      .template Attr<int64_t>("stride")
      .template Attr<int64_t>("activation");
}

template <class Kind>
auto factored_int8_of() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Buffer<Kind>>()
      .template Arg<ffi::Buffer<ffi::S8>>()
      .template Arg<ffi::Buffer<ffi::F32>>()
      .template Arg<ffi::Buffer<ffi::S8>>()
      .template Arg<ffi::Buffer<ffi::F32>>()
      .template Arg<ffi::Buffer<ffi::F32>>()
      .template Ret<Buffer<Kind>>()
      .template Attr<int64_t>("activation");
}

inline auto int16_of() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Buffer<BFloat16>>()
      .Arg<ffi::Buffer<ffi::S16>>()
      .Arg<ffi::Buffer<ffi::F32>>()
      .Ret<Buffer<BFloat16>>()
      .Attr<int64_t>("inputs")
      .Attr<int64_t>("stride")
      .Attr<int64_t>("activation");
}

inline auto factored_int16_of() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Buffer<BFloat16>>()
      .Arg<ffi::Buffer<ffi::S16>>()
      .Arg<ffi::Buffer<ffi::S16>>()
      .Arg<ffi::Buffer<ffi::F32>>()
      .Ret<Buffer<BFloat16>>()
      .Attr<int64_t>("activation");
}

}  // namespace
