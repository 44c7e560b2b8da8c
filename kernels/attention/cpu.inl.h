// SPDX-License-Identifier: Apache-2.0
// Compiled once per ISA level; exports one table.
#include "append.inl.h"
#include "dense.inl.h"
#include "paged.inl.h"

extern "C" const headrace::AttentionKernels HEADRACE_JOIN(headrace_attention_, HEADRACE_LEVEL) = {
    paged, paged_merge, dense, dense_merge, append, merge,
};
