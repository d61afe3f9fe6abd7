// What stands around a number or an address: characters that make it part of something larger, and words that say what
// it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace mindllm {

inline bool is_digit(char byte) { return byte >= '0' && byte <= '9'; }
inline bool is_letter(char byte) { return (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z'); }
inline bool is_alnum(char byte) { return is_digit(byte) || is_letter(byte); }
inline bool is_space(char byte) { return byte == ' ' || (byte >= '\t' && byte <= '\r'); }

// The byte at `at`, or 0 behind the text.
inline char byte_at(std::string_view text, size_t at) { return at < text.size() ? text[at] : '\0'; }
// The byte before `at`, or 0 at the beginning.
inline char byte_before(std::string_view text, size_t at) { return at > 0 ? text[at - 1] : '\0'; }
inline bool has_at(std::string_view text, size_t at, std::string_view what) {
    return at <= text.size() && text.substr(at, what.size()) == what;
}
inline bool has_before(std::string_view text, size_t at, std::string_view what) {
    return at >= what.size() && text.substr(at - what.size(), what.size()) == what;
}

// What parts of a number are set off by.
enum class Separator { NONE, SPACE, HYPHEN, DOT, CLOSE };

// Whether a number that begins (ends) there is whole, and not part of a word, a path, a decimal, a formula ... `inner` is
// what its own parts are set off by: another number at the same distance would be one more part.
bool begins_number(std::string_view text, size_t begin, Separator inner);
bool ends_number(std::string_view text, size_t end, Separator inner);

// Whether what follows makes it an amount: a unit, a currency, an operator.
bool is_amount(std::string_view text, size_t begin, size_t end);

// Whether it is all that a function is called with: "f(13800000000)".
bool is_argument(std::string_view text, size_t begin, size_t end);

// What the words right before a number say it is.
enum class Label { NONE, PHONE, OTHER, VERSION };
Label label_before(std::string_view text, size_t begin);

}  // namespace mindllm
