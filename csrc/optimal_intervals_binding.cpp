// The Python side of exact k-means in one dimension.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <limits>

#include "bindings.hpp"
#include "optimal_intervals.hpp"

namespace mindllm {

namespace {

namespace py = pybind11;
using DoubleArray = py::array_t<double, py::array::c_style | py::array::forcecast>;

py::array_t<int64_t> checked_intervals(const DoubleArray& values, int64_t clusters) {
    if (values.ndim() != 1) throw py::value_error("values must be one-dimensional");
    const int64_t count = values.size();
    if (clusters < 1 || clusters > count) throw py::value_error("clusters must be from 1 to the number of values");
    if (count >= std::numeric_limits<int32_t>::max()) throw py::value_error("at most 2^31 - 2 values");
    std::vector<int64_t> begins;
    {
        // A copy, so that no other thread can take away the order that was checked.
        const std::vector<double> copy(values.data(), values.data() + count);
        const py::gil_scoped_release release;
        for (int64_t i = 0; i < count; ++i) {
            if (!std::isfinite(copy[i]) || (i > 0 && copy[i] < copy[i - 1])) {
                throw std::invalid_argument("values must be finite and ascending");
            }
        }
        begins = optimal_intervals(copy.data(), count, clusters);
    }
    py::array_t<int64_t> result(clusters);
    std::copy(begins.begin(), begins.end(), result.mutable_data());
    return result;
}

}  // namespace

void bind_optimal_intervals(py::module_& module) {
    module.def("optimal_intervals", &checked_intervals, py::arg("values"), py::arg("clusters"),
               "Exact k-means in one dimension: where each of `clusters` intervals of ascending finite `values` begins,\n"
               "int64[clusters], so that the sum of squared distances from the intervals' means is least\n"
               "(csrc/optimal_intervals.hpp). ValueError for other values, or more clusters than values.");
}

}  // namespace mindllm
