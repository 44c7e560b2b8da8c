// SPDX-License-Identifier: Apache-2.0
#define HEADRACE_AVX512_VNNI
#include "cpu.inl.h"
