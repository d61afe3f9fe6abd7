// The Python side of format cleaning, text profiles and phrases: str in, results out. Texts are read where Python holds them,
// without the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <string_view>
#include <vector>

#include "bindings.hpp"
#include "phrase_set.hpp"
#include "text_cleaning.hpp"
#include "text_profile.hpp"

namespace mindllm {

namespace {

namespace py = pybind11;

std::string_view view_of(const py::str& text) {
    Py_ssize_t bytes = 0;
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &bytes);
    if (data == nullptr) throw py::error_already_set();
    return {data, static_cast<size_t>(bytes)};
}

py::tuple clean(const py::str& text) {
    const std::string_view view = view_of(text);
    CleaningCounts counts;
    std::string cleaned;
    {
        const py::gil_scoped_release release;
        cleaned = clean_format(view, counts);
    }
    py::dict kinds;
    const auto add = [&kinds](const char* kind, int64_t number) {
        if (number) kinds[kind] = number;
    };
    add("control characters", counts.control);
    add("emoji", counts.emoji);
    add("invisible characters", counts.invisible);
    add("markup", counts.markup);
    add("spaces between Chinese characters", counts.chinese_spaces);
    add("trailing spaces", counts.trailing_spaces);
    add("blank lines", counts.blank_lines);
    return py::make_tuple(cleaned == view ? text : py::str(cleaned), kinds);
}

TextProfile profile(const py::str& text) {
    const std::string_view view = view_of(text);
    const py::gil_scoped_release release;
    return profile_text(view);
}

py::tuple count_phrases(const PhraseSet& set, const py::str& text) {
    const std::string_view view = view_of(text);
    PhraseSet::Found found;
    {
        const py::gil_scoped_release release;
        found = set.count(view);
    }
    return py::make_tuple(found.phrases, found.characters);
}

}  // namespace

void bind_text_cleaning(py::module_& module) {
    module.def("clean_format", &clean, py::arg("text"),
               "(cleaned text, {kind: characters removed}) of a str, kinds that occur only (csrc/text_cleaning.hpp).\n"
               "UnicodeEncodeError for a lone surrogate.");
    py::class_<TextProfile>(module, "TextProfile", "What a text is made of (csrc/text_profile.hpp).")
        .def_readonly("characters", &TextProfile::characters)
        .def_readonly("ascii", &TextProfile::ascii)
        .def_readonly("spaces", &TextProfile::spaces)
        .def_readonly("counted", &TextProfile::counted)
        .def_readonly("text", &TextProfile::text)
        .def_readonly("han", &TextProfile::han)
        .def_readonly("kana", &TextProfile::kana)
        .def_readonly("hangul", &TextProfile::hangul)
        .def_readonly("latin", &TextProfile::latin)
        .def_readonly("accented", &TextProfile::accented)
        .def_readonly("other_letters", &TextProfile::other_letters)
        .def_readonly("words", &TextProfile::words)
        .def_readonly("digit_groups", &TextProfile::digit_groups)
        .def_readonly("lost", &TextProfile::lost)
        .def_readonly("utf8_as_latin", &TextProfile::utf8_as_latin)
        .def_readonly("high_latin", &TextProfile::high_latin);
    module.def("profile_text", &profile, py::arg("text"),
               "The TextProfile of a str. UnicodeEncodeError for a lone surrogate.");
    py::class_<PhraseSet>(module, "PhraseSet", "Counts the phrases of a list (csrc/phrase_set.hpp).")
        .def(py::init<const std::vector<std::string>&>(), py::arg("phrases"))
        .def("count", &count_phrases, py::arg("text"), "(phrases, characters in them) of a str.");
}

}  // namespace mindllm
