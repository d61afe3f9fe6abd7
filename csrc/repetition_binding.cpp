// The Python side of words, repetition and continuous repetition. Texts are read where Python holds them, without the
// GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings.hpp"
#include "continuous_repetition.hpp"
#include "repetition.hpp"
#include "text_view.hpp"
#include "words.hpp"

namespace mindllm {

namespace {

namespace py = pybind11;

py::list split_words(const py::str& text) {
    const std::string_view view = utf8_view(text);
    py::list words;
    for_each_word(view,
                  [&](const Word& word) { words.append(py::str(view.data() + word.begin, word.end - word.begin)); });
    return words;
}

Repetition measure(const py::str& text, const std::vector<size_t>& top_n, const std::vector<size_t>& duplicate_n) {
    const std::string_view view = utf8_view(text);
    const py::gil_scoped_release release;
    return measure_repetition(view, top_n, duplicate_n);
}

py::tuple shorten(const py::str& text, size_t copies, size_t keep) {
    if (keep < 1 || copies < 3 || copies <= keep) {
        throw py::value_error("keep is at least 1, copies at least 3 and more than keep");
    }
    const std::string_view view = utf8_view(text);
    Shortened result;
    {
        const py::gil_scoped_release release;
        result = shorten_repetition(view, copies, keep);
    }
    return py::make_tuple(result.removed ? py::str(result.text) : text, result.removed, py::str(result.example));
}

}  // namespace

void bind_repetition(py::module_& module) {
    py::class_<Repeated>(module, "Repeated",
                         "What is repeated: how many times, of how many characters in all, and the place of the first\n"
                         "in the text, in characters.")
        .def_readonly("count", &Repeated::count)
        .def_readonly("chars", &Repeated::chars)
        .def_readonly("at", &Repeated::at);
    py::class_<Repetition>(module, "Repetition", "How much of a text repeats what stands before (csrc/repetition.hpp).")
        .def_readonly("chars", &Repetition::chars)
        .def_readonly("paragraphs", &Repetition::paragraphs)
        .def_readonly("lines", &Repetition::lines)
        .def_readonly("words", &Repetition::words)
        .def_readonly("duplicate_paragraphs", &Repetition::duplicate_paragraphs)
        .def_readonly("duplicate_lines", &Repetition::duplicate_lines)
        .def_readonly("top_n_grams", &Repetition::top_n_grams)
        .def_readonly("duplicate_n_grams", &Repetition::duplicate_n_grams);
    module.def("split_words", &split_words, py::arg("text"), "The words of a text (csrc/words.hpp), a list of str.");
    module.def("measure_repetition", &measure, py::arg("text"), py::arg("top_n"), py::arg("duplicate_n"),
               "A text's Repetition, with n-grams of so many words. UnicodeEncodeError for a lone surrogate.");
    module.def("shorten_repetition", &shorten, py::arg("text"), py::arg("copies"), py::arg("keep"),
               "Shorten phrases repeated at least `copies` times without a break to `keep` copies\n"
               "(csrc/continuous_repetition.hpp): the text, how many characters were removed, and the beginning of\n"
               "the repetition that was longest. ValueError unless 1 <= keep < copies and copies >= 3;\n"
               "UnicodeEncodeError for a lone surrogate.");
}

}  // namespace mindllm
