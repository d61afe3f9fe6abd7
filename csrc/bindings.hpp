// What each part of the native module adds to it. A new part declares its function here and module.cpp calls it.
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
