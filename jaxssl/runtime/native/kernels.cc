// Parts of a forward pass that XLA's CPU code spreads badly over threads, or does without the processor's instructions
// for bfloat16 and int8: attention without its maps, products with packed weights, and selective scans. They give what
// the plain formulation gives, but for rounding (tests/runtime/test_native.py).

#include "attention.h"
#include "backward.h"
#include "buffers.h"
#include "later.h"
#include "map.h"
#include "quantised.h"
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
  const int64_t groups = (packed[2] - kHead) / Kind::kGroup;
  if (batch * rows * outputs == 0) return ffi::Error::Success();
  const int64_t length = x.element_count() / batch, panel = packed[2] * kPanel;
  const int64_t panels = packed[1], ahead = threads(pool), pieces = pieces_of_rows<Kind>(rows, batch * panels, ahead);
  const auto *in = x.typed_data(), *each = weights.typed_data();
  const float* shift = bias.typed_data();
  auto* out = y->typed_data();
  share(pool, batch * pieces * panels, [=](int64_t task) {
    const int64_t j = task % panels, piece = task / panels % pieces, row = task / panels / pieces, set = row % sets;
    const int64_t begin = rows * piece / pieces, end = rows * (piece + 1) / pieces;
    const auto* mine = each + (set * panels + j) * panel + kHead * kPanel;
    map<Kind>({in + row * length + begin * stride, stride}, {mine, groups}, end - begin,
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
  using Number = typename Kind::Number;
  constexpr int64_t kShare = 24;  // rows that are worth another thread
  const int64_t outputs = bias.element_count();
  if (y->element_count() == 0) return ffi::Error::Success();
  const int64_t rows = y->element_count() / outputs, inputs = x.element_count() / rows;
  const int64_t first = down.dimensions()[2], second = up.dimensions()[2], wide = second - kHead;  // rows of a panel
  const int64_t tasks = std::min(threads(pool), (rows + kShare - 1) / kShare);
  const auto *in = x.typed_data(), *before = down.typed_data(), *behind = up.typed_data();
  const float* shift = bias.typed_data();
  auto* out = y->typed_data();
  share(pool, tasks, [=](int64_t task) {
    const int64_t begin = rows * task / tasks, end = rows * (task + 1) / tasks;
    Number* middle = scratch<Number>(0, kTall * wide);
    const std::vector<float> nothing(wide);
    evenly(end - begin, kTall, [&](int64_t offset, int64_t count) {
      const auto mapped = [&](Rows<Kind> from, const Number* packed, int64_t deep, int64_t columns, const float* added,
                              int64_t last, Number* to, const Number* after) {
        packed += kHead * kPanel;
        for (int64_t j = 0; j < columns; j += kPanel, packed += deep * kPanel)
          map<Kind>(from, {packed, (deep - kHead) / Kind::kGroup}, count, std::min(kPanel, columns - j), added + j,
                    last, to + j, columns, j + kPanel < columns ? packed + deep * kPanel : after);
      };
      const int64_t row = begin + offset;
      mapped({in + row * inputs, inputs}, before, first, wide, nothing.data(), kLinear, middle, behind);
      mapped({middle, wide}, behind, second, outputs, shift, activation, out + row * outputs, before);
    });
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

}  // namespace

// What multiplies bfloat16 and int8 here and now (`Tier`).
extern "C" int tier_bfloat16() {
  const Tier found = tier<BFloat16>();
  return found != kPlain || !Int16::kGrouped ? found : VNNI ? kWholeVnni : kWholeAvx2;
}
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
XLA_FFI_DEFINE_HANDLER_SYMBOL(int16_bfloat16, ProductInt16, int16_of());
XLA_FFI_DEFINE_HANDLER_SYMBOL(factored_int16_bfloat16, FactoredInt16, factored_int16_of());
XLA_FFI_DEFINE_HANDLER_SYMBOL(int8_float32, ProductInt8<Float32>, int8_of<Float32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(int8_bfloat16, ProductInt8<BFloat16>, int8_of<BFloat16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(factored_int8_float32, FactoredInt8<Float32>, factored_int8_of<Float32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(factored_int8_bfloat16, FactoredInt8<BFloat16>, factored_int8_of<BFloat16>());
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
