// SPDX-License-Identifier: Apache-2.0
// A call of an op as its binding sees it: arguments in the order of the schema, results behind
// them. One that lies ready goes from Python's arguments to the kernel here; every other call is
// checked in Python, against the same contract and with a message, and comes as a list. Nothing
// here is of Python, whose headers take longer to compile than all else in the binding of an op.
#pragma once
#include <cmath>
#include <cstring>
#include <string>
#include <type_traits>

#include "bind/described.h"

namespace headrace::bind {

constexpr int kMost = 24;      // arguments and results
constexpr int kMostAxes = 16;  // of an op, and of its tensors

struct Given {
  bool there = false;  // not None
  int dtype = -1;      // of a tensor; a code of types.h, or one of tensor.h
  int fewer = 0;       // leading axes that the call left out, and that are 1 here
  Described at{};      // of a tensor
  double number = 0;
  std::int64_t whole = 0;  // an integer, or whether
  const char* text = "";

  std::int64_t size(int axis) const { return at.shape[axis]; }
  std::int64_t stride(int axis) const { return there ? at.strides[axis] : 0; }
  // 0 along what there is once, which then serves all.
  std::int64_t step(int axis) const { return there && size(axis) != 1 ? at.strides[axis] : 0; }
  template <class T>
  T* as() const {
    return there ? static_cast<T*>(at.data) : nullptr;
  }
  operator const void*() const { return as<const void>(); }
};

// What run and serves of an op take: arguments as the schema names and orders them, then results.
#define HEADRACE_IN(...)                                \
  struct In {                                           \
    Given __VA_ARGS__;                                  \
    static constexpr const char* kNames = #__VA_ARGS__; \
  }

struct Op {
  std::string names;
  std::size_t count;
  bool (*serves)(const Given* given, std::int64_t* told);
  void (*run)(const Given* given, int threads);
};

void bind_op(const char* name, const Op& op);  // into what module.cpp binds
const Op& op_named(const std::string& name);   // std::out_of_range
void run_op(const Op& op, const Given* given, int threads);

template <class In>
const In& in_order(const Given* given) {
  static_assert(std::is_standard_layout_v<In> && sizeof(In) % sizeof(Given) == 0);
  return *reinterpret_cast<const In*>(given);
}

template <auto serves, auto run, class In>
void bind_as(const char* name, void (*)(const In&, int)) {
  bind_op(name, {In::kNames, sizeof(In) / sizeof(Given),
                 [](const Given* g, std::int64_t* told) { return serves(in_order<In>(g), told); },
                 [](const Given* g, int threads) { run(in_order<In>(g), threads); }});
}

// serves(in, told): whether it is a call that the `values` of the contract let pass; it tells the
// sizes of results that no axis of an argument has, in their order. run(in, threads): throws
// std::invalid_argument before anything is written, and leaves Python alone.
template <auto serves, auto run>
void bind_op(const char* name) {
  bind_as<serves, run>(name, run);
}

// Queries, keys and values [tokens, heads, dim], as the kernels take them.
template <class In, class Args>
void take_qkv(const In& in, Args& args) {
  args.q = in.q;
  args.k = in.k;
  args.v = in.v;
  args.q_row = in.q.stride(0);
  args.q_head = in.q.stride(1);
  args.k_row = in.k.stride(0);
  args.k_head = in.k.stride(1);
  args.v_row = in.v.stride(0);
  args.v_head = in.v.stride(1);
  args.dtype = in.q.dtype;
}

// Strides of the first `axes` axes; with `shared` 0 along what there is once.
inline void strides_of(const Given& x, int axes, std::int64_t* to, bool shared = true) {
  for (int i = 0; i < axes; ++i) to[i] = shared ? x.step(i) : x.stride(i);
}

// Which of the names an argument is; -1 for none.
template <std::size_t count>
int which(const Given& text, const char* const (&names)[count]) {
  for (std::size_t i = 0; i < count; ++i) {
    if (std::strcmp(text.text, names[i]) == 0) return static_cast<int>(i);
  }
  return -1;
}

// Whether x is None, or its first `axes` axes are as those of `rows`, or 1.
inline bool spreads(const Given& x, const Given& rows, int axes) {
  bool good = true;
  for (int i = 0; x.there && i < axes; ++i) good &= x.size(i) == 1 || x.size(i) == rows.size(i);
  return good;
}

inline bool finite(const Given& x) { return !x.there || std::isfinite(x.number); }
inline bool sixteens(std::int64_t dim, std::int64_t most) {
  return dim > 0 && dim % 16 == 0 && dim <= most;
}
inline bool groups(std::int64_t heads, std::int64_t kv_heads) {
  return kv_heads > 0 && heads % kv_heads == 0;
}
inline std::int64_t blocks_of(std::int64_t tokens, std::int64_t block) {
  return tokens / block + (tokens % block != 0);
}
// What the softmax multiplies logits by, as Python's default has it.
inline float scale_of(const Given& scale, std::int64_t dim) {
  return static_cast<float>(scale.there ? scale.number : std::pow(static_cast<double>(dim), -0.5));
}

}  // namespace headrace::bind
