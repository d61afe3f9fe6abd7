// The forms of identity numbers, bank cards and phone numbers.
#pragma once

#include <string_view>

#include "personal_data.hpp"

namespace mindllm {

// The digit that begins at `at` (ASCII or full-width), or -1; `bytes` is set to its length.
int digit_at(std::string_view text, size_t at, size_t& bytes);

// What begins at `at`, which holds a digit, '+' or '(' (ASCII or full-width); nothing if it is none of these.
PersonalSpan find_number(std::string_view text, size_t at, bool old_id_numbers);

}  // namespace mindllm
