// The Python side of the unit encoder: str in, arrays out. Texts are read where Python holds them, without the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <mutex>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "text_units.hpp"

namespace mindllm {

namespace {

namespace py = pybind11;

py::array_t<int32_t> to_array(const std::vector<int32_t>& values) {
    return py::array_t<int32_t>(static_cast<py::ssize_t>(values.size()), values.data());
}

class SharedUnitEncoder {
  public:
    SharedUnitEncoder(const std::vector<std::string>& pieces, size_t cache_bytes) : encoder_(pieces, cache_bytes) {}

    py::tuple encode(const py::list& texts, const py::function& encode_units) {
        const py::tuple held(texts);  // the list may change while the GIL is released
        std::vector<std::string_view> views;
        views.reserve(held.size());
        for (const py::handle text : held) {
            Py_ssize_t bytes = 0;
            const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &bytes);
            if (data == nullptr) throw py::error_already_set();
            views.emplace_back(data, bytes);
        }
        const auto call = [&encode_units](const std::vector<std::string_view>& units) {
            const py::gil_scoped_acquire acquire;
            return encode_units(units).cast<std::vector<std::vector<int32_t>>>();
        };
        std::vector<int32_t> ids, lengths;
        {
            const py::gil_scoped_release release;  // first: who waits for its turn must not hold the GIL
            const std::lock_guard<std::mutex> lock(mutex_);
            encoder_.encode(views, call, ids, lengths);
        }
        return py::make_tuple(to_array(ids), to_array(lengths));
    }

    size_t cache_bytes() {
        const py::gil_scoped_release release;
        const std::lock_guard<std::mutex> lock(mutex_);
        return encoder_.cache_bytes();
    }

  private:
    std::mutex mutex_;
    UnitEncoder encoder_;
};

}  // namespace

void bind_text_units(py::module_& module) {
    py::class_<SharedUnitEncoder>(
        module, "UnitEncoder",
        "Encodes texts by units between which byte pair encoding never merges (csrc/text_units.hpp), and keeps the ids\n"
        "of units that it has met. Thread-safe: calls take turns.")
        .def(py::init<const std::vector<std::string>&, size_t>(), py::arg("pieces"), py::arg("cache_bytes"),
             "pieces: of the vocabulary, U+2581 for a space; cache_bytes: a call that finds more empties the cache.")
        .def("encode", &SharedUnitEncoder::encode, py::arg("texts"), py::arg("encode_units"),
             "The ids of a list of str, back to back: ids int32[total], lengths int32[texts]. `encode_units` gets the\n"
             "units that are not known, a list of str, and gives a list of ids for each; it must not call this object.\n"
             "UnicodeEncodeError for a lone surrogate, TypeError for what is no str, ValueError if units lack ids.")
        .def_property_readonly("cache_bytes", &SharedUnitEncoder::cache_bytes);
}

}  // namespace mindllm
