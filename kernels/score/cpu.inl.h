// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "block.inl.h"

extern "C" const headrace::ScoreKernels HEADRACE_JOIN(headrace_score_, HEADRACE_LEVEL) = {fold,
                                                                                          blocks};
