// Replaces what identifies a person: identity numbers, phone numbers, bank cards, e-mail and IP addresses.
//
// One pass from left to right looks for bytes that such things are made of: digits, '+', '(', '@' and ':'. Around each a
// few dozen bytes are read, never more, so that time is linear in the text, for any text. What has a check digit is
// checked; the rest is taken for what it looks like by its form, and by the words before it (personal_context.hpp).
// personal_numbers.hpp knows the forms of numbers, personal_addresses.hpp those of addresses.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace mindllm {

// In the order of PERSONAL_DATA_TOKENS in mindllm_engine/corpus/special_tokens.py.
enum class PersonalKind { ID_NUMBER, PHONE, BANK_CARD, EMAIL, IP };
constexpr size_t PERSONAL_KINDS = 5;

// A part of a text, in bytes. Empty if nothing was found.
struct PersonalSpan {
    PersonalKind kind = PersonalKind::ID_NUMBER;
    size_t begin = 0, end = 0;
    explicit operator bool() const { return end > begin; }
};

struct PersonalDataOptions {
    std::array<std::string, PERSONAL_KINDS> tokens;  // what is written in place of each kind
    bool old_id_numbers = false;                     // those of 15 digits, which have no check digit
    bool reserved = false;                           // addresses that belong to nobody: private networks, example.com
};

struct CleanedText {
    std::string text;  // empty if nothing was replaced: the text is as it was
    std::array<int64_t, PERSONAL_KINDS> counts{};

    bool found() const {
        return std::any_of(counts.begin(), counts.end(), [](int64_t count) { return count > 0; });
    }
};

// `text`: valid UTF-8.
CleanedText replace_personal_data(std::string_view text, const PersonalDataOptions& options);

}  // namespace mindllm
