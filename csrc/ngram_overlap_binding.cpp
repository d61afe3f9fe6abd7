// The Python side of the index of overlaps. Texts are read where Python holds them, without the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "bindings.hpp"
#include "ngram_overlap.hpp"
#include "text_view.hpp"

namespace mindllm {

namespace py = pybind11;

void bind_ngram_overlap(py::module_& module) {
    py::class_<Overlap>(module, "Overlap",
                        "An item in a document: its number, how many of its words can be found, how many are covered,\n"
                        "and from where to where, in characters of the document.")
        .def_readonly("item", &Overlap::item)
        .def_readonly("words", &Overlap::words)
        .def_readonly("covered", &Overlap::covered)
        .def_readonly("begin", &Overlap::begin)
        .def_readonly("end", &Overlap::end);
    py::class_<OverlapIndex> index(module, "OverlapIndex",
                             "Finds items in documents by the n-grams they share (csrc/ngram_overlap.hpp): `add` all,\n"
                             "`finish`, then `find`, from several threads if need be.");
    index.attr("MAX_N") = OverlapIndex::MAX_N;
    index
        .def(py::init([](size_t words_n, size_t chars_n, size_t min_words, size_t min_chars, size_t max_items) {
                 return OverlapIndex({words_n, chars_n, min_words, min_chars, max_items});
             }),
             py::kw_only(), py::arg("words_n"), py::arg("chars_n"), py::arg("min_words"), py::arg("min_chars"),
             py::arg("max_items"), "ValueError for impossible numbers.")
        .def(
            "add", [](OverlapIndex& index, const py::str& text) { index.add(utf8_view(text)); }, py::arg("text"),
            "The next item. ValueError after `finish`, UnicodeEncodeError for a lone surrogate.")
        .def("finish", &OverlapIndex::finish)
        .def(
            "find",
            [](const OverlapIndex& index, const py::str& text, double share) {
                const std::string_view view = utf8_view(text);
                const py::gil_scoped_release release;
                return index.find(view, share);
            },
            py::arg("text"), py::arg("share"),
            "A list of Overlap: every item of which the text covers at least such a share (above 0), in their order.\n"
            "ValueError before `finish`, UnicodeEncodeError for a lone surrogate.")
        .def_property_readonly("items", &OverlapIndex::items)
        .def_property_readonly("short_items", &OverlapIndex::short_items)
        .def_property_readonly("common_items", &OverlapIndex::common_items)
        .def_property_readonly("bytes", &OverlapIndex::bytes);
}

}  // namespace mindllm
