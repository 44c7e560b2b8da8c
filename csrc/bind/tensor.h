// SPDX-License-Identifier: Apache-2.0
// Tensors of small calls, read where they are: torch's table of C functions (that of DLPack, handed
// over as a capsule) tells of a tensor in a tenth of the time that its attributes take in Python.
#pragma once
#include "bind/bind.h"
#include "bind/described.h"

namespace headrace::bind {

// Takes the capsule, torch's Tensor and its Parameter; nothing lies ready before, nor of a table of
// another version.
void take_exchange(py::object capsule, py::object tensor, py::object parameter);

// Whether x is a tensor of the CPU, not of a subclass, that has no sign to be turned, nor, with
// `recorded`, a gradient.
bool lies(py::handle x, bool recorded, Described& to, int& dtype);

// A dense tensor of a few pages at most, for a result, in a third of the time that a call of torch
// takes; nothing of more, nor without the table. Its memory cannot be resized.
py::object made(const std::int64_t* shape, int dims, int dtype);

// Any tensor of the CPU, whatever there is of the table. Sizes and strides may go to `room`, which
// has `most` places for each.
void described(py::handle x, Described& to, int& dtype, std::int64_t* room, int most);

// Whether its elements lie one after the other.
bool dense(const Described& x);

}  // namespace headrace::bind
