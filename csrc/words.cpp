// The kinds of characters beyond ASCII, by blocks of Unicode.
#include "words.hpp"

#include <algorithm>
#include <iterator>

namespace mindllm {

namespace {

struct Range {
    uint32_t first, last;
    CharacterKind kind;
};

constexpr auto SPACE = CharacterKind::space;
constexpr auto IDEOGRAPH = CharacterKind::ideograph;
constexpr auto OTHER = CharacterKind::other;

// In order. What is in none of them is a letter: scripts with spaces between their words, marks, digits.
constexpr Range RANGES[] = {
    {0x0080, 0x0084, OTHER},        // controls
    {0x0085, 0x0085, SPACE},        //
    {0x0086, 0x009F, OTHER},        //
    {0x00A0, 0x00A0, SPACE},        // Latin-1's punctuation and signs
    {0x00A1, 0x00A9, OTHER},        //
    {0x00AB, 0x00B1, OTHER},        //
    {0x00B4, 0x00B4, OTHER},        //
    {0x00B6, 0x00B8, OTHER},        //
    {0x00BB, 0x00BB, OTHER},        //
    {0x00BF, 0x00BF, OTHER},        //
    {0x00D7, 0x00D7, OTHER},        //
    {0x00F7, 0x00F7, OTHER},        //
    {0x1680, 0x1680, SPACE},        //
    {0x2000, 0x200A, SPACE},        // general punctuation
    {0x200B, 0x2027, OTHER},        //
    {0x2028, 0x2029, SPACE},        //
    {0x202A, 0x202E, OTHER},        //
    {0x202F, 0x202F, SPACE},        //
    {0x2030, 0x205E, OTHER},        //
    {0x205F, 0x205F, SPACE},        //
    {0x2060, 0x206F, OTHER},        //
    {0x20A0, 0x20CF, OTHER},        // currencies
    {0x2190, 0x245F, OTHER},        // arrows, operators, technical signs
    {0x249C, 0x24E9, OTHER},        // circled letters
    {0x2500, 0x2BFF, OTHER},        // boxes, shapes, dingbats, arrows, operators
    {0x2E00, 0x2E7F, OTHER},        // punctuation
    {0x2E80, 0x2FDF, IDEOGRAPH},    // radicals
    {0x2FF0, 0x2FFF, OTHER},        //
    {0x3000, 0x3000, SPACE},        // CJK punctuation
    {0x3001, 0x3004, OTHER},        //
    {0x3005, 0x3007, IDEOGRAPH},    // iteration mark, closing mark, zero
    {0x3008, 0x3020, OTHER},        //
    {0x3021, 0x3029, IDEOGRAPH},    // Suzhou numerals
    {0x302A, 0x3040, OTHER},        //
    {0x3041, 0x312F, IDEOGRAPH},    // kana, Bopomofo
    {0x31A0, 0x31BF, IDEOGRAPH},    // Bopomofo
    {0x31F0, 0x31FF, IDEOGRAPH},    // kana
    {0x3200, 0x33FF, OTHER},        // enclosed and squared
    {0x3400, 0x4DBF, IDEOGRAPH},    //
    {0x4DC0, 0x4DFF, OTHER},        // hexagrams
    {0x4E00, 0x9FFF, IDEOGRAPH},    //
    {0xA490, 0xA4C6, OTHER},        // Yi radicals
    {0xE000, 0xF8FF, OTHER},        // private use
    {0xF900, 0xFAFF, IDEOGRAPH},    //
    {0xFE10, 0xFE1F, OTHER},        // vertical forms
    {0xFE30, 0xFE6F, OTHER},        // compatibility forms, small forms
    {0xFEFF, 0xFEFF, OTHER},        // byte order mark
    {0xFF01, 0xFF0F, OTHER},        // full-width punctuation
    {0xFF1A, 0xFF20, OTHER},        //
    {0xFF3B, 0xFF40, OTHER},        //
    {0xFF5B, 0xFF65, OTHER},        //
    {0xFFE0, 0xFFFF, OTHER},        // full-width signs, specials
    {0x10190, 0x101FC, OTHER},      // ancient symbols
    {0x1CF00, 0x1D35F, OTHER},      // musical notation, hexagrams
    {0x1D800, 0x1DAAF, OTHER},      // sign writing
    {0x1F000, 0x1FBEF, OTHER},      // tiles, emoji, symbols
    {0x20000, 0x3FFFF, IDEOGRAPH},  //
    {0xE0000, 0xE007F, OTHER},      // tags
};

}  // namespace

CharacterKind kind_beyond_ascii(uint32_t character) {
    const auto behind = std::upper_bound(std::begin(RANGES), std::end(RANGES), character,
                                         [](uint32_t c, const Range& range) { return c < range.first; });
    if (behind == std::begin(RANGES)) return CharacterKind::letter;
    const Range& range = *std::prev(behind);
    return character <= range.last ? range.kind : CharacterKind::letter;
}

}  // namespace mindllm
