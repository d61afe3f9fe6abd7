// The Python module `mindllm_engine._native`: the translation of errors, and one call for each part.
#include <pybind11/pybind11.h>

#include <cerrno>
#include <string>

#include "bindings.hpp"
#include "errors.hpp"

namespace {

namespace py = pybind11;

// File names are bytes, not always UTF-8.
py::object file_system_text(const std::string& text) {
    return py::reinterpret_steal<py::object>(
        PyUnicode_DecodeFSDefaultAndSize(text.data(), static_cast<Py_ssize_t>(text.size())));
}

void translate(std::exception_ptr error) {
    try {
        std::rethrow_exception(error);
    } catch (const mindllm::IoError& io) {
        const py::object path = file_system_text(io.path);
        errno = io.code;
        PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path.ptr());
    } catch (const mindllm::FormatError& format) {
        PyErr_SetObject(PyExc_ValueError, file_system_text(format.what()).ptr());
    }
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "The engine's C++: packing, token files.";
    py::register_exception_translator(&translate);
    mindllm::bind_packing(module);
    mindllm::bind_token_files(module);
}
