// SPDX-License-Identifier: Apache-2.0
// The delta rules of one level: token by token, and frame by frame.
#pragma once
#include "frames.inl.h"
#include "gated.inl.h"

extern "C" const headrace::DeltaKernels HEADRACE_JOIN(headrace_delta_, HEADRACE_LEVEL) = {
    norms, strip, gated};
