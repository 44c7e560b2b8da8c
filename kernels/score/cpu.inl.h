// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "assign.inl.h"
#include "block.inl.h"
#include "mass.inl.h"
#include "segment.inl.h"

extern "C" const headrace::ScoreKernels HEADRACE_JOIN(headrace_score_, HEADRACE_LEVEL) = {
    fold, blocks, segment, mass_queries, mass_sums, mass, candidates, assign};
