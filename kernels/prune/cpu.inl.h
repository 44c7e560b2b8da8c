// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "compact.inl.h"
#include "similarity.inl.h"

extern "C" const headrace::PruneKernels HEADRACE_JOIN(headrace_prune_, HEADRACE_LEVEL) = {
    rows, patches, blend, gather};
