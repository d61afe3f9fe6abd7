// The Python side of the search for personal data: str in, str and counts out, without the GIL.
#include "personal_data.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings.hpp"

namespace mindllm {

namespace {

namespace py = pybind11;

py::tuple replace(const py::str& text, const std::array<std::string, PERSONAL_KINDS>& tokens, bool old_id_numbers,
                  bool reserved) {
    Py_ssize_t bytes = 0;
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &bytes);
    if (data == nullptr) throw py::error_already_set();
    CleanedText cleaned;
    {
        const py::gil_scoped_release release;
        cleaned = replace_personal_data(std::string_view(data, bytes), {tokens, old_id_numbers, reserved});
    }
    const py::object result = cleaned.found() ? py::str(cleaned.text) : py::object(text);
    return py::make_tuple(result, cleaned.counts);
}

}  // namespace

void bind_personal_data(py::module_& module) {
    module.def("replace_personal_data", &replace, py::arg("text"), py::arg("tokens"), py::kw_only(),
               py::arg("old_id_numbers") = false, py::arg("reserved") = false,
               "Writes tokens in place of identity numbers, phone numbers, bank cards, e-mail and IP addresses\n"
               "(csrc/personal_data.hpp); `tokens` are five, in this order. (text, how many of each kind).\n"
               "old_id_numbers: those of 15 digits too; reserved: addresses that belong to nobody too.\n"
               "UnicodeEncodeError for a lone surrogate, TypeError for what is no str.");
}

}  // namespace mindllm
