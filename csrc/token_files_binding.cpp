// The Python side of the token files: numpy arrays in and out, the GIL released around everything that may take time.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <filesystem>
#include <memory>
#include <string>

#include "bindings.hpp"
#include "token_file_reader.hpp"
#include "token_file_writer.hpp"

namespace mindllm {

namespace {

namespace py = pybind11;
using Path = std::filesystem::path;
template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;
using Int64Array = Array<int64_t>;

void require_integers(const py::array& array, const char* name) {
    if (array.ndim() != 1) throw py::type_error(std::string(name) + " must have one dimension");
    const char kind = array.dtype().kind();
    if (kind != 'i' && kind != 'u') throw py::type_error(std::string(name) + " must be an array of integers");
}

Int64Array int64_array(const py::array& array, const char* name) {
    require_integers(array, name);
    return Int64Array::ensure(array);
}

template <typename T>
void append_as(TokenFileWriter& writer, const py::array& tokens, const Int64Array& lengths) {
    const auto contiguous = Array<T>::ensure(tokens);  // no copy for a contiguous array in native byte order
    if (!contiguous) throw py::error_already_set();
    const T* data = contiguous.data();
    const int64_t *length_data = lengths.data(), count = contiguous.size(), documents = lengths.size();
    const py::gil_scoped_release release;
    writer.append(data, count, length_data, documents);
}

void append(TokenFileWriter& writer, const py::array& tokens, const Int64Array& lengths) {
    require_integers(tokens, "tokens");
    const bool is_signed = tokens.dtype().kind() == 'i';
    switch (tokens.itemsize()) {
        case 1:
            return is_signed ? append_as<int8_t>(writer, tokens, lengths) : append_as<uint8_t>(writer, tokens, lengths);
        case 2:
            return is_signed ? append_as<int16_t>(writer, tokens, lengths)
                             : append_as<uint16_t>(writer, tokens, lengths);
        case 4:
            return is_signed ? append_as<int32_t>(writer, tokens, lengths)
                             : append_as<uint32_t>(writer, tokens, lengths);
        default:
            return is_signed ? append_as<int64_t>(writer, tokens, lengths)
                             : append_as<uint64_t>(writer, tokens, lengths);
    }
}

void append_document(TokenFileWriter& writer, const py::array& tokens) {
    Int64Array length(1);
    *length.mutable_data() = tokens.size();
    append(writer, tokens, length);
}

// A read-only array over the map, which keeps the reader, and so the map, alive.
py::array view(const py::object& self, int64_t start, int64_t count) {
    const auto& reader = self.cast<const TokenFileReader&>();
    reader.require_range(start, count);
    const py::dtype dtype{std::string(reader.type().name)};
    py::array array(dtype, {count}, {reader.type().bytes}, reader.address(start), self);
    array.attr("setflags")(py::arg("write") = false);
    return array;
}

py::array document(const py::object& self, int64_t index) {
    const auto& reader = self.cast<const TokenFileReader&>();
    if (index < 0 || index >= reader.documents()) {
        throw py::index_error(reader.prefix() + ": there is no document " + std::to_string(index) + " among " +
                              std::to_string(reader.documents()));
    }
    int64_t length = 0;
    reader.document_lengths(index, index + 1, &length);
    return view(self, reader.document_start(index), length);
}

py::array_t<int64_t> lengths(const TokenFileReader& reader) {
    py::array_t<int64_t> array(reader.documents());
    int64_t* data = array.mutable_data();
    const py::gil_scoped_release release;
    reader.document_lengths(0, reader.documents(), data);
    return array;
}

template <typename T>
void gather_as(const TokenFileReader& reader, const Int64Array& starts, const Int64Array& counts, py::array& out) {
    const int64_t *start_data = starts.data(), *count_data = counts.data(), n = starts.size(), room = out.size();
    T* target = static_cast<T*>(out.mutable_data());  // raises for a read-only array
    const py::gil_scoped_release release;
    reader.gather(start_data, count_data, n, target, room);
}

void gather(const TokenFileReader& reader, const py::array& starts, const py::array& counts, py::array out) {
    const Int64Array starts64 = int64_array(starts, "starts"), counts64 = int64_array(counts, "counts");
    if (starts64.size() != counts64.size()) throw py::value_error("starts and counts must be of one length");
    const bool is_int32 = out.dtype().equal(py::dtype::of<int32_t>());
    if (out.ndim() != 1 || (out.flags() & py::array::c_style) == 0 ||
        (!is_int32 && !out.dtype().equal(py::dtype::of<int64_t>()))) {
        throw py::type_error("out must be a contiguous one-dimensional array of int32 or int64");
    }
    if (is_int32) {
        gather_as<int32_t>(reader, starts64, counts64, out);
    } else {
        gather_as<int64_t>(reader, starts64, counts64, out);
    }
}

void read_data(const TokenFileReader& reader, int64_t offset, py::array_t<uint8_t>& out) {
    if (out.ndim() != 1 || (out.flags() & py::array::c_style) == 0)
        throw py::type_error("out must be a contiguous one-dimensional array of uint8");
    uint8_t* target = out.mutable_data();  // raises for a read-only array
    const int64_t bytes = out.size();
    const py::gil_scoped_release release;
    reader.read_data(target, bytes, offset);
}

void bind_writer(py::module_& module) {
    using NoGil = py::call_guard<py::gil_scoped_release>;
    py::class_<TokenFileWriter>(
        module, "TokenFileWriter",
        "Writes `<prefix>.bin` and `<prefix>.idx`, which appear under these names at `finalize` only.\n\n"
        "Thread-safe. Without `finalize` the temporary files are deleted. A failed system call raises\n"
        "OSError with errno and file name, and aborts.")
        .def(py::init([](const Path& prefix, const std::string& dtype) {
                 return std::make_unique<TokenFileWriter>(prefix.string(), dtype);
             }),
             py::arg("prefix"), py::arg("dtype"), "`dtype`: \"uint16\" or \"int32\" (ValueError else).")
        .def(
            "append", &append_document, py::arg("tokens"),
            "Append one document: integers[tokens]. ValueError names an id that does not fit; nothing is written then.")
        .def(
            "append_many",
            [](TokenFileWriter& writer, const py::array& tokens, const py::array& lengths) {
                append(writer, tokens, int64_array(lengths, "lengths"));
            },
            py::arg("tokens"), py::arg("lengths"),
            "Append documents lying back to back: integers[tokens] and integers[documents], which add up to tokens.\n\n"
            "All or nothing: ValueError for an id that does not fit or lengths that do not add up.")
        .def(
            "append_file", [](TokenFileWriter& writer, const Path& prefix) { writer.append_file(prefix.string()); },
            py::arg("prefix"), NoGil(),
            "Append the documents of another token file of the same dtype. ValueError or OSError; a failure aborts.")
        .def("finalize", &TokenFileWriter::finalize, NoGil(), "Flush to the disk and rename, the .idx last.")
        .def("abort", &TokenFileWriter::abort, NoGil(), "Delete the temporary files; does nothing once they are gone.")
        .def_property_readonly("documents", &TokenFileWriter::documents)
        .def_property_readonly("tokens", &TokenFileWriter::tokens);
}

void bind_reader(py::module_& module) {
    using NoGil = py::call_guard<py::gil_scoped_release>;
    py::class_<TokenFileReader, std::shared_ptr<TokenFileReader>>(
        module, "TokenFileReader",
        "Reads `<prefix>.bin` and `<prefix>.idx` through read-only memory maps.\n\n"
        "Opening validates both: ValueError for a damaged one, OSError for one that cannot be opened.\n"
        "`thorough=False` validates the header, the sizes and the first and last entries only, in O(1); what\n"
        "is read later is then checked as it is read, ValueError too. The tokens are one stream, numbered\n"
        "from 0. Immutable and thread-safe. Ranges outside the stream raise IndexError.")
        .def(py::init([](const Path& prefix, bool thorough) {
                 const py::gil_scoped_release release;  // in a py::init, not around it: see bindings.hpp
                 return std::make_shared<TokenFileReader>(prefix.string(), thorough);
             }),
             py::arg("prefix"), py::arg("thorough") = true)
        .def("check_index", &TokenFileReader::check_index, NoGil(),
             "Check every entry of the index, which is read from the file anew; ValueError for a wrong one.")
        .def_property_readonly("documents", &TokenFileReader::documents)
        .def_property_readonly("tokens", &TokenFileReader::tokens)
        .def_property_readonly("dtype",
                               [](const TokenFileReader& reader) { return py::dtype(std::string(reader.type().name)); })
        .def_property_readonly("lengths", &lengths, "int64[documents], in tokens; made anew on each access.")
        .def("document_start", &TokenFileReader::document_start, py::arg("document"),
             "Where a document starts in the stream; `document` may be the number of documents, which gives the end.")
        .def("document", &document, py::arg("document"), "A read-only view of a document's tokens, without a copy.")
        .def("read", &view, py::arg("start_token"), py::arg("count"),
             "A read-only view of a range of the stream, without a copy.")
        .def("gather", &gather, py::arg("starts"), py::arg("counts"), py::arg("out").noconvert(),
             "Copy n ranges of the stream back to back to `out`, converting the dtype.\n\n"
             "starts, counts: int64[n]; out: contiguous int32 or int64 with exactly sum(counts) items. IndexError for "
             "a\n"
             "range outside the stream or another sum, before anything is copied.")
        .def("read_data", &read_data, py::arg("offset"), py::arg("out").noconvert(),
             "Fill `out`, uint8[bytes], with the .bin's bytes from `offset` on, read from the file and not through\n"
             "the map: a file that has been cut short is a ValueError. IndexError outside the file.")
        .def("document_of", &TokenFileReader::document_of, py::arg("token"), NoGil(),
             "The document that holds a token of the stream; ValueError if a damaged index has none.")
        .def("max_token", &TokenFileReader::max_token, NoGil(), "The largest id, by a scan; -1 in an empty file.")
        .def(
            "find_stray",
            [](const TokenFileReader& reader, int64_t vocab_size) {
                std::optional<StrayToken> stray;
                {
                    const py::gil_scoped_release release;
                    stray = reader.find_stray(vocab_size);
                }
                return stray ? py::object(py::make_tuple(stray->document, stray->position, stray->id)) : py::none();
            },
            py::arg("vocab_size"),
            "The first id below 0 or at least `vocab_size` as (document, position in it, id), or None; by a scan.");
}

}  // namespace

void bind_token_files(py::module_& module) {
    bind_writer(module);
    bind_reader(module);
    module.def(
        "write_index",
        [](const Path& path, const std::string& dtype, const py::array& lengths) {
            const Int64Array lengths64 = int64_array(lengths, "lengths");
            const int64_t *data = lengths64.data(), count = lengths64.size();
            const py::gil_scoped_release release;
            write_index(path.string(), dtype, data, count);
        },
        py::arg("path"), py::arg("dtype"), py::arg("lengths"),
        "Write the .idx alone, to `path`, for documents of `lengths` tokens: integers[documents].");
}

}  // namespace mindllm
