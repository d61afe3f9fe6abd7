// The Python side of the token bytes: objects to hand to the batch reader, and a plain read.
#include <pybind11/pybind11.h>
#include <pybind11/stl/filesystem.h>

#include <filesystem>
#include <memory>
#include <stdexcept>

#include "bindings.hpp"
#include "token_bytes.hpp"

namespace mindllm {

namespace {

namespace py = pybind11;
using Path = std::filesystem::path;

py::bytes read(const TokenBytes& source, int64_t offset, int64_t bytes) {
    // Before room is made for them: a wild number must not ask for memory.
    if (bytes < 0 || bytes > source.bytes()) throw std::out_of_range(source.path() + ": no such range of bytes");
    auto content = py::reinterpret_steal<py::bytes>(PyBytes_FromStringAndSize(nullptr, bytes));
    if (!content) throw py::error_already_set();
    char* target = PyBytes_AS_STRING(content.ptr());
    const py::gil_scoped_release release;
    source.read(offset, bytes, target);
    source.check_end();
    return content;
}

}  // namespace

void bind_token_bytes(py::module_& module) {
    py::class_<TokenBytes, std::shared_ptr<TokenBytes>>(
        module, "TokenBytes",
        "The bytes of a .bin or .idx. Thread-safe.\n\n"
        "Reading raises IndexError for a range that is not inside, ValueError for a file cut short, OSError.")
        .def("read", &read, py::arg("offset"), py::arg("bytes"), "Copy a range of bytes.")
        .def_property_readonly("bytes", &TokenBytes::bytes, "How many there are.")
        .def_property_readonly("path", [](const TokenBytes& source) { return Path(source.path()); });
    py::class_<LocalBytes, TokenBytes, std::shared_ptr<LocalBytes>>(module, "LocalBytes", "A file's bytes.")
        .def(py::init([](const Path& path) { return std::make_shared<LocalBytes>(path.string()); }), py::arg("path"));
    py::class_<ChunkFolderBytes, TokenBytes, std::shared_ptr<ChunkFolderBytes>>(
        module, "ChunkFolderBytes",
        "The chunks `<folder>/0`, `<folder>/1`, ... of a file, of which any may be absent.\n\n"
        "Reading raises MissingChunkError, with the attributes `folder` and `chunk`, for one that is absent or has not\n"
        "its full size.")
        .def(py::init([](const Path& folder, int64_t chunk_bytes, int64_t total_bytes) {
                 return std::make_shared<ChunkFolderBytes>(folder.string(), chunk_bytes, total_bytes);
             }),
             py::arg("folder"), py::arg("chunk_bytes"), py::arg("total_bytes"));
}

}  // namespace mindllm
