// The Python side of near-duplicates: records of texts, and the search in files of them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "minhash.hpp"
#include "near_duplicates.hpp"
#include "signature_files.hpp"
#include "simhash.hpp"

namespace mindllm {

namespace {

namespace py = pybind11;

std::string_view utf8(const py::str& text) {
    Py_ssize_t bytes = 0;
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &bytes);
    if (data == nullptr) throw py::error_already_set();
    return {data, static_cast<size_t>(bytes)};
}

template <typename T>
std::string_view bytes_of(const T* values, size_t count) {
    return {reinterpret_cast<const char*>(values), count * sizeof(T)};
}

py::bytes simhash_record(const py::str& text, size_t n, uint64_t shortest, uint64_t settings) {
    const std::string_view view = utf8(text);
    std::string record;
    {
        const py::gil_scoped_release release;
        const uint64_t signature = simhash(view, n, shortest);
        record = signature_record(bytes_of(&signature, 1), view, settings);
    }
    return record;
}

py::bytes minhash_record(const MinHasher& hasher, const py::str& text, size_t n, uint64_t settings) {
    const std::string_view view = utf8(text);
    std::string record;
    {
        const py::gil_scoped_release release;
        std::vector<uint32_t> values(hasher.hashes());
        hasher.sign(view, n, values.data());
        record = signature_record(bytes_of(values.data(), values.size()), view, settings);
    }
    return record;
}

py::tuple as_tuple(const DuplicateCounts& counts) {
    return py::make_tuple(counts.documents, counts.exact, counts.near);
}

py::tuple simhash_duplicates(std::vector<std::string> paths, uint64_t settings, int distance, const std::string& folder,
                             size_t memory_bytes) {
    DuplicateCounts counts;
    {
        const py::gil_scoped_release release;
        const SignatureFiles signatures(std::move(paths), sizeof(uint64_t), settings);
        counts = find_simhash_duplicates(signatures, distance, folder, memory_bytes);
    }
    return as_tuple(counts);
}

py::tuple minhash_duplicates(std::vector<std::string> paths, uint64_t settings, size_t hashes, size_t bands,
                             size_t least_equal, const std::string& folder, size_t memory_bytes) {
    DuplicateCounts counts;
    {
        const py::gil_scoped_release release;
        const SignatureFiles signatures(std::move(paths), hashes * sizeof(uint32_t), settings);
        counts = find_minhash_duplicates(signatures, hashes, bands, least_equal, folder, memory_bytes);
    }
    return as_tuple(counts);
}

}  // namespace

void bind_near_duplicates(py::module_& module) {
    module.attr("SIGNATURE_RECORD_TAIL") = RECORD_TAIL;
    module.def("simhash_record", &simhash_record, py::arg("text"), py::arg("n"), py::arg("shortest"),
               py::arg("settings"),
               "The record (csrc/signature_files.hpp) of a text's SimHash over shingles of n units (csrc/shingles.hpp).\n"
               "UnicodeEncodeError for a lone surrogate.");
    py::class_<MinHasher>(module, "MinHasher", "MinHash signatures of so many values (csrc/minhash.hpp). Thread-safe.")
        .def(py::init<size_t>(), py::arg("hashes"))
        .def("record", &minhash_record, py::arg("text"), py::arg("n"), py::arg("settings"),
             "The record of a text; see `simhash_record`.");
    module.def("simhash_duplicates", &simhash_duplicates, py::arg("paths"), py::arg("settings"), py::arg("distance"),
               py::arg("folder"), py::arg("memory_bytes"),
               "Writes <folder>/<i>.duplicates for each file of signatures (csrc/near_duplicates.hpp); gives the numbers\n"
               "of documents, exact copies and near-copies. ValueError for a damaged file, OSError.");
    module.def("minhash_duplicates", &minhash_duplicates, py::arg("paths"), py::arg("settings"), py::arg("hashes"),
               py::arg("bands"), py::arg("least_equal"), py::arg("folder"), py::arg("memory_bytes"),
               "See `simhash_duplicates`.");
}

}  // namespace mindllm
