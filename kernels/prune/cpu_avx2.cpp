// SPDX-License-Identifier: Apache-2.0
#define HEADRACE_AVX2
#include "cpu.inl.h"
