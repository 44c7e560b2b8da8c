// SPDX-License-Identifier: Apache-2.0
// Large fresh outputs in huge pages: the first touch of every 4 KiB page is a fault, and for tens
// of megabytes the faults cost a quarter of what the kernel does.
#pragma once
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace headrace {

inline void prefer_huge_pages(void* data, std::int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kPage = 4096;
  constexpr std::int64_t kWorth = std::int64_t{8} << 20;
  if (bytes < kWorth) return;
  const std::uintptr_t begin = (reinterpret_cast<std::uintptr_t>(data) + kPage - 1) & ~(kPage - 1);
  const std::uintptr_t end = (reinterpret_cast<std::uintptr_t>(data) + bytes) & ~(kPage - 1);
  // A hint: where it is refused, everything works as before.
  (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace headrace
