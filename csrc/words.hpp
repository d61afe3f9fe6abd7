// Cutting text into words: what the n-grams of repetition.hpp and ngram_overlap.hpp are made of.
//
// A word is an ideograph or kana by itself, a longest run of letters, digits and underscores, or a longest run of one
// and the same other character ("---"). Whitespace, the same as Python's, lies between words and is in none. One rule
// serves all languages: Chinese falls into characters, English into words and punctuation, mixed text into both.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace mindllm {

enum class CharacterKind : uint8_t { space, letter, ideograph, other };

// Of a code point from U+0080 on.
CharacterKind kind_beyond_ascii(uint32_t character);

namespace detail {
constexpr std::array<CharacterKind, 128> ascii_kinds() {
    std::array<CharacterKind, 128> kinds{};
    for (int c = 0; c < 128; ++c) {
        const bool letter = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_';
        const bool space = (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20);
        kinds[c] = letter ? CharacterKind::letter : space ? CharacterKind::space : CharacterKind::other;
    }
    return kinds;
}
constexpr std::array<CharacterKind, 128> ASCII_KINDS = ascii_kinds();
}  // namespace detail

inline CharacterKind character_kind(uint32_t character) {
    if (character < 0x80) return detail::ASCII_KINDS[character];
    if (character >= 0x4E00 && character <= 0x9FFF) return CharacterKind::ideograph;  // nearly all of a Chinese text
    return kind_beyond_ascii(character);
}

inline bool is_continuation(char byte) { return (static_cast<uint8_t>(byte) & 0xC0) == 0x80; }

inline size_t count_characters(std::string_view text) {
    size_t count = 0;
    for (const char byte : text) count += !is_continuation(byte);
    return count;
}

// The character at `at` of valid UTF-8, and `at` moved behind it.
inline uint32_t next_character(std::string_view text, size_t& at) {
    const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(text[at + i])); };
    const uint32_t first = byte(0);
    uint32_t character = first;
    size_t length = 1;
    if (first >= 0xF0) {
        character = (first & 7) << 18 | (byte(1) & 63) << 12 | (byte(2) & 63) << 6 | (byte(3) & 63);
        length = 4;
    } else if (first >= 0xE0) {
        character = (first & 15) << 12 | (byte(1) & 63) << 6 | (byte(2) & 63);
        length = 3;
    } else if (first >= 0xC0) {
        character = (first & 31) << 6 | (byte(1) & 63);
        length = 2;
    }
    at += length;
    return character;
}

// A word's bytes [begin, end) and its place and length in characters.
struct Word {
    size_t begin, end;
    size_t at, chars;
    CharacterKind kind;
};

// Calls `call(word)` for the words of valid UTF-8 from first to last. Linear in the text's length.
template <typename Call>
void for_each_word(std::string_view text, Call call) {
    size_t place = 0;
    for (size_t at = 0; at < text.size();) {
        Word word{at, at, place, 1, CharacterKind::space};
        const uint32_t first = next_character(text, at);
        word.kind = character_kind(first);
        if (word.kind == CharacterKind::letter || word.kind == CharacterKind::other) {
            while (at < text.size()) {
                const auto byte = static_cast<uint8_t>(text[at]);
                if (word.kind == CharacterKind::letter && byte < 0x80) {  // what follows says the same, more slowly
                    if (detail::ASCII_KINDS[byte] != CharacterKind::letter) break;
                    ++at;
                    ++word.chars;
                    continue;
                }
                size_t behind = at;
                const uint32_t next = next_character(text, behind);
                const bool same = word.kind == CharacterKind::letter ? character_kind(next) == CharacterKind::letter
                                                                     : next == first;
                if (!same) break;
                at = behind;
                ++word.chars;
            }
        }
        word.end = at;
        place += word.chars;
        if (word.kind != CharacterKind::space) call(word);
    }
}

}  // namespace mindllm
