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

// Made once, with the module, and never destroyed: the interpreter may be gone by then.
py::handle missing_chunk_error;

void translate(std::exception_ptr error) {
    try {
        std::rethrow_exception(error);
    } catch (const mindllm::IoError& io) {
        const py::object path = file_system_text(io.path);
        errno = io.code;
        PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path.ptr());
    } catch (const mindllm::FormatError& format) {
        PyErr_SetObject(PyExc_ValueError, file_system_text(format.what()).ptr());
    } catch (const mindllm::MissingChunk& missing) {
        const py::object error = missing_chunk_error(file_system_text(missing.what()));
        error.attr("folder") = file_system_text(missing.folder);
        error.attr("chunk") = missing.chunk;
        PyErr_SetObject(missing_chunk_error.ptr(), error.ptr());
    }
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "The engine's C++: token files, packing, token streams, encoding by units, and the text loops of the corpus.";
    missing_chunk_error = py::exception<mindllm::MissingChunk>(module, "MissingChunkError", PyExc_LookupError).release();
    py::register_exception_translator(&translate);
    mindllm::bind_token_bytes(module);
    mindllm::bind_packing(module);
    mindllm::bind_token_files(module);
    mindllm::bind_streams(module);
    mindllm::bind_text_units(module);
    mindllm::bind_text_cleaning(module);
    mindllm::bind_near_duplicates(module);
    mindllm::bind_word_matcher(module);
    mindllm::bind_personal_data(module);
    mindllm::bind_repetition(module);
    mindllm::bind_ngram_overlap(module);
    mindllm::bind_optimal_intervals(module);
}
