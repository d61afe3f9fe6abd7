// Reading a Python str in place.
#pragma once

#include <pybind11/pybind11.h>

#include <string_view>

namespace mindllm {

// The UTF-8 of a str, which Python keeps as long as the str. UnicodeEncodeError for a lone surrogate.
inline std::string_view utf8_view(const pybind11::str& text) {
    Py_ssize_t bytes = 0;
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &bytes);
    if (data == nullptr) throw pybind11::error_already_set();
    return {data, static_cast<size_t>(bytes)};
}

}  // namespace mindllm
