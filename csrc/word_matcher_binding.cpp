// The Python side of the word matcher: str in, counts out, without the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "word_matcher.hpp"

namespace mindllm {

namespace {

namespace py = pybind11;

py::tuple count_words(const WordMatcher& matcher, const py::str& text) {
    Py_ssize_t bytes = 0;
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &bytes);
    if (data == nullptr) throw py::error_already_set();
    WordCounts counts;
    size_t first_character = 0;
    {
        const py::gil_scoped_release release;
        counts = matcher.count(std::string_view(data, bytes));
        first_character = std::count_if(data, data + counts.first,
                                        [](char byte) { return (static_cast<uint8_t>(byte) & 0xC0) != 0x80; });
    }
    return py::make_tuple(counts.occurrences, first_character);
}

}  // namespace

void bind_word_matcher(py::module_& module) {
    py::class_<WordMatcher>(module, "WordMatcher",
                            "Counts the words of a vocabulary in texts (csrc/word_matcher.hpp): Aho-Corasick, leftmost\n"
                            "and longest, without overlaps; Latin words as whole words, ASCII in any case. Thread-safe.")
        .def(py::init<const std::vector<std::string>&>(), py::arg("words"), py::call_guard<py::gil_scoped_release>(),
             "ValueError if there is no word, or one is empty or longer than 1023 bytes.")
        .def("count", &count_words, py::arg("text"),
             "(occurrences by the word's number, the character at which the first begins). UnicodeEncodeError for a\n"
             "lone surrogate, TypeError for what is no str.")
        .def_property_readonly("bytes", &WordMatcher::bytes);
}

}  // namespace mindllm
