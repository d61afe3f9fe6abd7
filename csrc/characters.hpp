// What kind of character a code point is, as far as the cleaning of a corpus has to know it. Ranges rather than full
// Unicode tables where whole blocks are alike; tests/corpus/steps compare them with Unicode's own properties.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace mindllm {

// The character at `at` of valid UTF-8, and `at` moved behind it. Nothing is read behind a text that is not valid.
inline char32_t decode_character(std::string_view text, size_t& at) {
    const auto byte = [text](size_t i) -> char32_t { return i < text.size() ? static_cast<uint8_t>(text[i]) : 0; };
    const char32_t lead = byte(at);
    char32_t character = lead;
    size_t bytes = 1;
    if (lead >= 0xF0) {
        character = (lead & 7) << 18 | (byte(at + 1) & 63) << 12 | (byte(at + 2) & 63) << 6 | (byte(at + 3) & 63);
        bytes = 4;
    } else if (lead >= 0xE0) {
        character = (lead & 15) << 12 | (byte(at + 1) & 63) << 6 | (byte(at + 2) & 63);
        bytes = 3;
    } else if (lead >= 0xC0) {
        character = (lead & 31) << 6 | (byte(at + 1) & 63);
        bytes = 2;
    }
    at = at + bytes < text.size() ? at + bytes : text.size();
    return character;
}

inline bool between(char32_t c, char32_t first, char32_t last) { return c >= first && c <= last; }

inline bool is_ascii_letter(char32_t c) { return between(c | 32, 'a', 'z'); }

inline bool is_digit(char32_t c) { return between(c, '0', '9'); }

// Ideographs, with the marks 々 and 〇 that are written like one.
inline bool is_han(char32_t c) {
    return between(c, 0x4E00, 0x9FFF) || between(c, 0x3400, 0x4DBF) || between(c, 0x20000, 0x33479) || c == 0x3005 ||
           c == 0x3007 || between(c, 0xF900, 0xFAD9);
}

// Punctuation of Chinese text alone: 。、《》 and the full-width forms.
inline bool is_chinese_punctuation(char32_t c) {
    return between(c, 0x3001, 0x3003) || between(c, 0x3008, 0x3011) || between(c, 0x3014, 0x301F) ||
           between(c, 0xFF01, 0xFF0F) || between(c, 0xFF1A, 0xFF20) || between(c, 0xFF3B, 0xFF40) ||
           between(c, 0xFF5B, 0xFF65) || between(c, 0xFE30, 0xFE4F);
}

// Punctuation that Chinese shares with other languages: — ‘ ’ “ ” … ·
inline bool is_shared_punctuation(char32_t c) {
    return c == 0x2014 || between(c, 0x2018, 0x2019) || between(c, 0x201C, 0x201D) || c == 0x2026 || c == 0xB7;
}

// C0 and C1 controls but tab and the breaks of lines, noncharacters, and what is left unassigned among the specials.
bool is_control(char32_t c);

// Ends a line: \v, \f, U+0085, U+2028, U+2029; \n and \r are looked for elsewhere.
inline bool is_exotic_line_break(char32_t c) { return c == 0x0B || c == 0x0C || c == 0x85 || between(c, 0x2028, 0x2029); }

// Spaces of every width but U+0020.
inline bool is_exotic_space(char32_t c) {
    return c == 0xA0 || c == 0x1680 || between(c, 0x2000, 0x200A) || c == 0x202F || c == 0x205F || c == 0x3000;
}

// Without any width: joiners, marks of direction, soft hyphens, byte order marks, fillers, tags.
bool is_invisible(char32_t c);

// Chooses among the shapes of the character before it.
inline bool is_variation_selector(char32_t c) {
    return between(c, 0xFE00, 0xFE0F) || between(c, 0xE0100, 0xE01EF) || between(c, 0x180B, 0x180D) || c == 0x180F;
}

// Shown as an emoji unless asked otherwise (Unicode 17: Emoji_Presentation, and Extended_Pictographic from U+1F000).
bool is_emoji(char32_t c);

// Shown as a sign of text unless asked otherwise, by a variation selector: ✔ ☎ ↔ (Extended_Pictographic and its
// neighbours; © ® ™ stay whatever follows).
inline bool is_text_pictograph(char32_t c) {
    return between(c, 0x2190, 0x2BFF) || c == 0x203C || c == 0x2049 || c == 0x2139 || c == 0x3030 || c == 0x303D ||
           c == 0x3297 || c == 0x3299;
}

// Symbols, by blocks: from arrows to miscellaneous symbols, box drawing, private use, pictures.
bool is_symbol(char32_t c);

}  // namespace mindllm
