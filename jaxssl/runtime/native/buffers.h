// How XLA hands arrays over.
#pragma once

#include "numbers.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

template <class Kind>
struct Type;
template <>
struct Type<Float32> {
  static constexpr auto kType = ffi::F32, kPacked = ffi::F32;
};
template <>
struct Type<BFloat16> {
  static constexpr auto kType = ffi::BF16, kPacked = ffi::U16;
};
template <class Kind>
using Buffer = ffi::Buffer<Type<Kind>::kType>;
template <class Kind>
using Packed = ffi::Buffer<Type<Kind>::kPacked>;  // bfloat16 as bits, so that nobody takes it for numbers
template <class Kind>
using Result = ffi::ResultBuffer<Type<Kind>::kType>;
