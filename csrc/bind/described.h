// SPDX-License-Identifier: Apache-2.0
// What a tensor is to a binding, without anything of Python.
#pragma once
#include <cstdint>

namespace headrace::bind {

// As DLPack lays it out.
struct Described {
  void* data;
  std::int32_t device_type, device;
  std::int32_t dims;
  std::uint8_t kind, bits;
  std::uint16_t lanes;
  std::int64_t *shape, *strides;
  std::uint64_t offset;
};

// A tensor of the CPU that can be read as it lies; `dtype` is a code of types.h, or one of these.
enum MoreDType : int { kUint8 = 5, kInt32, kInt64, kBool, kFloat64 };
constexpr std::int64_t kItems[] = {4, 2, 2, 1, 1, 1, 4, 8, 1, 8};  // bytes of an element

}  // namespace headrace::bind
