// SPDX-License-Identifier: Apache-2.0
#include "linear.h"

#include "bind/bind.h"

namespace headrace::bind {

namespace {

void linear(Address x, std::int64_t x_row, Address weight, std::int64_t w_row, Address bias,
            Address y, Strides3 sizes, int x_dtype, int w_dtype, int threads) {
  const headrace::LinearArgs args{at<const void>(x),
                                  at<const void>(weight),
                                  at<const void>(bias),
                                  at<void>(y),
                                  sizes[0],
                                  sizes[1],
                                  sizes[2],
                                  x_row,
                                  w_row,
                                  x_dtype,
                                  w_dtype};
  py::gil_scoped_release nogil;
  headrace::linear(args, threads);
}

}  // namespace

void linear_family(py::module_& m) { m.def("linear", &linear); }

}  // namespace headrace::bind
