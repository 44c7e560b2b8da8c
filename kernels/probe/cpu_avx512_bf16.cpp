// SPDX-License-Identifier: Apache-2.0
#define HEADRACE_AVX512_BF16
#include "cpu.inl.h"
