// SPDX-License-Identifier: Apache-2.0
#define HEADRACE_AVX512
#include "cpu.inl.h"
