// What each part of the native module adds to it. A new part declares its function here and module.cpp calls it.
//
// A py::init that takes long releases the GIL inside the function it is given. A call_guard would hold it released while
// pybind11 enters the new object in its map, which every module in the process shares and nothing else guards: with another
// thread's objects made or freed meanwhile, the process ends in "Tried to deallocate unregistered instance"
// (github.com/pybind/pybind11/issues/5473).
#pragma once

#include <pybind11/pybind11.h>

namespace mindllm {

void bind_token_bytes(pybind11::module_& module);
void bind_packing(pybind11::module_& module);
void bind_token_files(pybind11::module_& module);
void bind_streams(pybind11::module_& module);
void bind_text_units(pybind11::module_& module);
void bind_text_cleaning(pybind11::module_& module);
void bind_near_duplicates(pybind11::module_& module);
void bind_word_matcher(pybind11::module_& module);
void bind_personal_data(pybind11::module_& module);
void bind_repetition(pybind11::module_& module);
void bind_ngram_overlap(pybind11::module_& module);
void bind_optimal_intervals(pybind11::module_& module);

}  // namespace mindllm
