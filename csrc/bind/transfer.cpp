// SPDX-License-Identifier: Apache-2.0
#include "transfer.h"

#include "bind/bind.h"

namespace headrace::bind {

void transfers(py::module_& m) {
  m.def(
      "crc32c",
      [](Address data, std::int64_t size) {
        return crc32c(0, at<const std::uint8_t>(data), static_cast<std::size_t>(size));
      },
      py::arg("data"), py::arg("size"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "copy_runs",
      [](Address to, Address from, Address size, std::int64_t runs, int threads) {
        copy_runs(at<const std::uintptr_t>(to), at<const std::uintptr_t>(from),
                  at<const std::int64_t>(size), runs, threads);
      },
      py::arg("to"), py::arg("from_"), py::arg("size"), py::arg("runs"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "read_parts",
      [](std::int64_t count, std::int64_t part_bytes, Address file, Address where, Address sums,
         std::int64_t pieces, Address piece_bytes, Address into, Address room,
         std::int64_t room_bytes, int threads, Address outcome) {
        const Parts parts{count,
                          part_bytes,
                          at<const std::int32_t>(file),
                          at<const std::int64_t>(where),
                          at<const std::uint32_t>(sums),
                          pieces,
                          at<const std::int64_t>(piece_bytes),
                          at<const std::uintptr_t>(into)};
        read_parts(parts, at<std::uint8_t>(room), room_bytes, threads, at<std::int32_t>(outcome));
      },
      py::arg("count"), py::arg("part_bytes"), py::arg("file"), py::arg("at"), py::arg("sums"),
      py::arg("pieces"), py::arg("piece_bytes"), py::arg("into"), py::arg("room"),
      py::arg("room_bytes"), py::arg("threads"), py::arg("outcome"),
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace headrace::bind
