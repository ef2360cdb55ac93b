// Parts of a forward pass that XLA's CPU code spreads badly over threads, or does without the processor's instructions
// for bfloat16 and int8: attention without its maps, products with packed weights, and selective scans. They give what
// the plain formulation gives, but for rounding (tests/runtime/test_native.py).

#include "attention.h"
#include "backward.h"
#include "buffers.h"
#include "later.h"
#include "map.h"
#include "scan.h"

namespace {

// Into how many pieces the frames of so many heads are cut.
int64_t pieces_of_heads(int64_t heads, int64_t threads) {
  const int64_t least = threads == 1 ? 1 : (2 * threads + heads - 1) / heads;
  return pieces_of(least, least + 8, heads, threads);
}

// q, k, v and the context are (batch, time, heads, size); keys from lengths[batch] on are padding.
template <class Kind>
ffi::Error Attention(ffi::ThreadPool pool, Buffer<Kind> q, Buffer<Kind> k, Buffer<Kind> v,
                     ffi::Buffer<ffi::S32> lengths, ffi::Buffer<ffi::U32> words, Result<Kind> context,
                     int64_t threshold, float scale, bool together) {
  const auto shape = q.dimensions();
  const int64_t batch = shape[0], time = shape[1], heads = shape[2], size = shape[3], count = batch * heads;
  if (count == 0) return ffi::Error::Success();
  // Few heads on many threads: some let their frames attend in several pieces, each with keys and values of its own.
  const int64_t pieces = std::min(time, pieces_of_heads(count, threads(pool)));
  const auto *queries = q.typed_data(), *keys = k.typed_data(), *values = v.typed_data();
  const Drops drops{words.typed_data(), uint32_t(threshold), scale, together ? time * time : 0};
  const int32_t* valid = lengths.typed_data();
  auto* out = context->typed_data();
  share(pool, count * pieces, [=](int64_t task) {
    const int64_t piece = task % pieces, head = task / pieces % heads, row = task / pieces / heads;
    const int64_t at = row * time * heads * size + head * size;
    const int64_t seen = valid[row] > 0 ? valid[row] : time;  // a row that only fills a batch: anything finite
    attend(Head<Kind>{queries + at, keys + at, values + at, out + at, heads * size, size, time, seen},
           time * piece / pieces, time * (piece + 1) / pieces, drops.of(task / pieces));
  });
  return ffi::Error::Success();
}

// y (batch, rows, outputs) = activation(windows of x · weights + bias) for x of (batch, numbers), whose windows begin
// `stride` numbers apart; weights are packed, those of row b are number b modulo their first axis.
template <class Kind>
ffi::Error Product(ffi::ThreadPool pool, Buffer<Kind> x, Packed<Kind> weights, ffi::Buffer<ffi::F32> bias,
                   Result<Kind> y, int64_t stride, int64_t activation) {
  const auto shape = y->dimensions(), packed = weights.dimensions();  // (sets, panels, depth, kPanel)
  const int64_t batch = shape[0], rows = shape[1], outputs = shape[2], sets = packed[0];
  const int64_t groups = packed[2] / Kind::kGroup;
  if (batch * rows * outputs == 0) return ffi::Error::Success();
  const int64_t length = x.element_count() / batch, panel = groups * Panel<Kind>::kStride;
  const int64_t panels = packed[1], ahead = threads(pool), pieces = pieces_of_rows<Kind>(rows, batch * panels, ahead);
  const auto *in = x.typed_data(), *each = weights.typed_data();
  const float* shift = bias.typed_data();
  auto* out = y->typed_data();
  share(pool, batch * pieces * panels, [=](int64_t task) {
    const int64_t j = task % panels, piece = task / panels % pieces, row = task / panels / pieces, set = row % sets;
    const int64_t begin = rows * piece / pieces, end = rows * (piece + 1) / pieces;
    const auto* mine = each + (set * panels + j) * panel;
    map<Kind>({in + row * length + begin * stride, stride}, mine, groups, end - begin,
              std::min(kPanel, outputs - j * kPanel), shift + set * outputs + j * kPanel, activation,
              out + (row * rows + begin) * outputs + j * kPanel, outputs,
              j + ahead < panels ? mine + ahead * panel : mine);
  });
  return ffi::Error::Success();
}

// y (rows, outputs) = activation(x · down · up + bias), the middle of a few rows staying in the cache.
template <class Kind>
ffi::Error Factored(ffi::ThreadPool pool, Buffer<Kind> x, Packed<Kind> down, Packed<Kind> up,
                    ffi::Buffer<ffi::F32> bias, Result<Kind> y, int64_t activation) {
  constexpr int64_t kShare = 24;  // rows that are worth another thread
  const int64_t outputs = bias.element_count();
  if (y->element_count() == 0) return ffi::Error::Success();
  const int64_t rows = y->element_count() / outputs, inputs = x.element_count() / rows;
  const int64_t wide = up.dimensions()[2], first = down.dimensions()[2] / Kind::kGroup, second = wide / Kind::kGroup;
  const int64_t tasks = std::min(threads(pool), (rows + kShare - 1) / kShare);
  const auto *in = x.typed_data(), *before = down.typed_data(), *behind = up.typed_data();
  const float* shift = bias.typed_data();
  auto* out = y->typed_data();
  share(pool, tasks, [=](int64_t task) {
    const int64_t begin = rows * task / tasks, end = rows * (task + 1) / tasks;
    auto* middle = scratch<typename Kind::Number>(0, kTall * wide);
    const std::vector<float> nothing(wide);
    evenly(end - begin, kTall, [&](int64_t offset, int64_t count) {
      const int64_t row = begin + offset;
      map<Kind>({in + row * inputs, inputs}, before, first, count, wide, nothing.data(), kLinear, middle, wide, behind);
      map<Kind>({middle, wide}, behind, second, count, outputs, shift, activation, out + row * outputs, outputs,
                before);
    });
  });
  return ffi::Error::Success();
}

// Turn windows of `inputs` floats, `stride` apart, into whole numbers from -127 to 127, 128 added, and tell each one's
// scale.
template <class Number>
void quantise(const Number* x, int64_t stride, int64_t rows, int64_t inputs, int64_t wide, uint8_t* to, float* scales) {
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  const int64_t whole = inputs / kLanes * kLanes;
  for (int64_t i = 0; i < rows; ++i, x += stride, to += wide) {
    Number left[kLanes] = {};  // what is no whole vector
    std::copy(x + whole, x + inputs, left);
    Vector top{}, wrong{};
    for (int64_t k = 0; k < inputs; k += kLanes) {
      const Vector some = read(k < whole ? x + k : left);
      top = larger(top, some < 0 ? -some : some);
      wrong += some * 0.0f;  // no number, where some is none
    }
    float largest = 0, lost = 0;
    for (int l = 0; l < kLanes; ++l) largest = std::max(largest, top[l]), lost += wrong[l];
    const float scale = largest / 127.0f;
    scales[i] = scale + lost;
    const Vector divisor = splat(largest > 0 ? scale : 1.0f);
    for (int64_t k = 0; k < inputs; k += kLanes) {
      // 1.5 × 2^23 brings a whole number into the low bits, rounded to even.
      const Ints bits = (Ints)(read(k < whole ? x + k : left) / divisor + 12582912.0f) + splat(int32_t(128));
      const Bytes bytes = __builtin_convertvector(bits, Bytes);
      std::memcpy(to + k, &bytes, std::min<int64_t>(kLanes, wide - k));
    }
  }
}

// y (batch, rows, outputs) = activation(windows of x · weights + bias) for x of (batch, numbers), whose windows of
// `inputs` numbers begin `stride` apart, and weights in int8 with a scale each column; windows are quantised as they
// come, each with a scale of its own. The first group of a panel holds -128 times the sum of each column, in 32 bits:
// what the 128 too much of the factors adds.
template <class Kind>
ffi::Error ProductInt8(ffi::ThreadPool pool, Buffer<Kind> x, ffi::Buffer<ffi::S8> weights, ffi::Buffer<ffi::F32> scale,
                       ffi::Buffer<ffi::F32> bias, Result<Kind> y, int64_t inputs, int64_t stride, int64_t activation) {
  const auto shape = y->dimensions();
  const int64_t batch = shape[0], each = shape[1], outputs = shape[2], rows = batch * each;
  if (rows * outputs == 0) return ffi::Error::Success();
  const int64_t length = x.element_count() / batch;
  const int64_t groups = weights.dimensions()[2] / Int8::kGroup, wide = (groups - 1) * Int8::kGroup;
  const int64_t panels = weights.dimensions()[1], ahead = threads(pool);
  const int64_t pieces = pieces_of_rows<Int8>(rows, panels, ahead);
  const auto* in = x.typed_data();
  const float *shift = bias.typed_data(), *columns = scale.typed_data();
  const auto* packed = reinterpret_cast<const uint8_t*>(weights.typed_data());
  auto* out = y->typed_data();
  const auto bytes = memory<uint8_t>(rows * wide);
  const auto gains = memory<float>(rows);
  uint8_t* numbers = bytes.get();
  float* scales = gains.get();
  constexpr int64_t kShare = 8;  // rows that are worth another thread
  const int64_t parts = std::min(4 * threads(pool), (each + kShare - 1) / kShare);
  share(pool, batch * parts, [=](int64_t task) {
    const int64_t part = task % parts, row = task / parts, begin = each * part / parts, at = row * each + begin;
    quantise(in + row * length + begin * stride, stride, each * (part + 1) / parts - begin, inputs, wide,
             numbers + at * wide, scales + at);
  });
  share(pool, pieces * panels, [=](int64_t task) {
    const int64_t j = task % panels * kPanel, piece = task / panels;
    const int64_t begin = rows * piece / pieces, count = rows * (piece + 1) / pieces - begin;
    const int64_t here = std::min(kPanel, outputs - j);
    const uint8_t* panel = packed + task % panels * groups * Panel<Int8>::kStride;
    int32_t* sums = scratch<int32_t>(2, kTall * kPanel);
    float gains[kPanel] = {};
    std::copy_n(columns + j, here, gains);
    for (int64_t i = 0; i < count; ++i) std::memcpy(sums + i * kPanel, panel, kPanel * sizeof(int32_t));
    multiply<Int8>({numbers + begin * wide, wide}, {panel + Panel<Int8>::kStride, groups - 1}, sums, count, here, true,
                   task % panels + ahead < panels ? panel + ahead * groups * Panel<Int8>::kStride : panel);
    const auto value = [&](int64_t i, int64_t c) {
      return __builtin_convertvector(load(sums + i * kPanel + c), Vector) * splat(scales[begin + i]) * load(gains + c);
    };
    finish(value, count, here, shift + j, activation, out + begin * outputs + j, outputs);
  });
  return ffi::Error::Success();
}

template <class Kind>
auto attention_of() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .template Arg<Buffer<Kind>>()
      .template Arg<Buffer<Kind>>()
      .template Arg<Buffer<Kind>>()
      .template Arg<ffi::Buffer<ffi::S32>>()
      .template Arg<ffi::Buffer<ffi::U32>>()
      .template Ret<Buffer<Kind>>()
      .template Attr<int64_t>("threshold")
      .template Attr<float>("scale")
      .template Attr<bool>("together");
}

template <class Kind>
auto product_of() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .template Arg<Buffer<Kind>>()
      .template Arg<Packed<Kind>>()
      .template Arg<ffi::Buffer<ffi::F32>>()
      .template Ret<Buffer<Kind>>()
      .template Attr<int64_t>("stride")
      .template Attr<int64_t>("activation");
}

template <class Kind>
auto factored_of() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .template Arg<Buffer<Kind>>()
      .template Arg<Packed<Kind>>()
      .template Arg<Packed<Kind>>()
      .template Arg<ffi::Buffer<ffi::F32>>()
      .template Ret<Buffer<Kind>>()
      .template Attr<int64_t>("activation");
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

}  // namespace

// What multiplies bfloat16 and int8 here and now (`Tier`).
extern "C" int tier_bfloat16() { return tier<BFloat16>(); }
extern "C" int tier_int8() { return tier<Int8>(); }

// Tasks that a product of rows and panels in float32, and the attention of so many heads, are shared out in among
// threads.
extern "C" int64_t tasks_of_product(int64_t rows, int64_t panels, int64_t threads) {
  return pieces_of_rows<Float32>(rows, panels, threads) * panels;
}
extern "C" int64_t tasks_of_attention(int64_t heads, int64_t threads) {
  return pieces_of_heads(heads, threads) * heads;
}
#if defined(EMULATED_TILES)
extern "C" int64_t products_of_tiles() { return emulated_products; }
#endif

XLA_FFI_DEFINE_HANDLER_SYMBOL(attention_float32, Attention<Float32>, attention_of<Float32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(attention_bfloat16, Attention<BFloat16>, attention_of<BFloat16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(product_float32, Product<Float32>, product_of<Float32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(product_bfloat16, Product<BFloat16>, product_of<BFloat16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(factored_float32, Factored<Float32>, factored_of<Float32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(factored_bfloat16, Factored<BFloat16>, factored_of<BFloat16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(int8_float32, ProductInt8<Float32>, int8_of<Float32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(int8_bfloat16, ProductInt8<BFloat16>, int8_of<BFloat16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(attention_gradient_float32, AttentionGradient<Float32>, attention_gradient_of<Float32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(attention_gradient_bfloat16, AttentionGradient<BFloat16>,
                              attention_gradient_of<BFloat16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(convolution_float32, Convolution<Float32>, convolution_of<Float32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(kernel_gradient_float32, KernelGradient<Float32>, kernel_gradient_of<Float32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(frames_gradient_float32, FramesGradient<Float32>, frames_gradient_of<Float32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(convolution_bfloat16, Convolution<BFloat16>, convolution_of<BFloat16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(kernel_gradient_bfloat16, KernelGradient<BFloat16>, kernel_gradient_of<BFloat16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(frames_gradient_bfloat16, FramesGradient<BFloat16>, frames_gradient_of<BFloat16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(scan_float32, Scan, scan_of());
XLA_FFI_DEFINE_HANDLER_SYMBOL(scan_gradient_float32, ScanGradient, scan_gradient_of());
XLA_FFI_DEFINE_HANDLER_SYMBOL(later, Later, later_of());
