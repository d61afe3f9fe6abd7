// The counts, character by character; what spans several characters is followed by a small state for each.
#include "text_profile.hpp"

#include <cstddef>
#include <cstdint>
#include <numeric>

#include "characters.hpp"

namespace mindllm {

namespace {

constexpr int64_t COUNTED_RUN = 3;
constexpr int64_t SHORTEST_NUMBER = 7, LONGEST_NUMBER = 15;

// Those that words are made of come first.
enum class Kind : uint8_t { LATIN, DIGIT, HANGUL, OTHER_LETTER, SPACE, HAN, KANA, PUNCTUATION, SYMBOL };
constexpr Kind LAST_OF_WORDS = Kind::OTHER_LETTER;
constexpr size_t KINDS = static_cast<size_t>(Kind::SYMBOL) + 1;

bool is_ascii_punctuation(char32_t c) {
    switch (c) {
        case '.': case ',': case ';': case ':': case '?': case '!': case '\'': case '"': case '(': case ')':
        case '-': case '/': case '%': case '&': case '+': case '=':
            return true;
        default:
            return false;
    }
}

Kind ascii_kind(char32_t c) {
    if (is_ascii_letter(c)) return Kind::LATIN;
    if (is_digit(c)) return Kind::DIGIT;
    if (c == ' ' || c == '\n' || c == '\t' || c == '\r') return Kind::SPACE;
    return is_ascii_punctuation(c) ? Kind::PUNCTUATION : Kind::SYMBOL;
}

struct AsciiKinds {
    Kind of[128];
    AsciiKinds() {
        for (char32_t c = 0; c < 128; ++c) of[c] = ascii_kind(c);
    }
};
const AsciiKinds ASCII;

// By blocks: what is no space, digit, punctuation, symbol or combining mark is taken for a letter.
Kind kind_of(char32_t c) {
    if (c < 0x80) return ASCII.of[c];
    if (is_han(c)) return Kind::HAN;
    if (c < 0x370) {
        if (c == 0xA0) return Kind::SPACE;
        if (c == 0xAA || c == 0xB5 || c == 0xBA) return Kind::LATIN;
        if (c == 0xAB || c == 0xBB || c == 0xB7 || c == 0xBF || c == 0xA1) return Kind::PUNCTUATION;
        if (c < 0xC0 || c == 0xD7 || c == 0xF7 || between(c, 0x300, 0x36F) || is_invisible(c)) return Kind::SYMBOL;
        return Kind::LATIN;
    }
    if (between(c, 0x1E00, 0x1EFF) || between(c, 0xFF21, 0xFF3A) || between(c, 0xFF41, 0xFF5A)) return Kind::LATIN;
    if (between(c, 0xFF10, 0xFF19)) return Kind::DIGIT;
    if (is_exotic_space(c) || between(c, 0x2028, 0x2029)) return Kind::SPACE;
    if (is_chinese_punctuation(c) || between(c, 0x2010, 0x2027) || between(c, 0x2030, 0x203E)) return Kind::PUNCTUATION;
    if (between(c, 0x3041, 0x30FF) || between(c, 0x31F0, 0x31FF) || between(c, 0xFF66, 0xFF9F)) return Kind::KANA;
    if (between(c, 0xAC00, 0xD7A3) || between(c, 0x1100, 0x11FF) || between(c, 0x3131, 0x318E)) return Kind::HANGUL;
    if (is_symbol(c) || is_invisible(c) || is_variation_selector(c) || between(c, 0x1AB0, 0x1AFF) ||
        between(c, 0x1DC0, 0x1DFF) || between(c, 0x20D0, 0x20FF) || between(c, 0xFE20, 0xFE2F)) {
        return Kind::SYMBOL;
    }
    return Kind::OTHER_LETTER;
}

// The byte that Windows-1252, or Latin-1 where that has none, writes for a character that is not ASCII; 0 for others.
uint8_t latin_byte(char32_t c) {
    if (between(c, 0x80, 0xFF)) return static_cast<uint8_t>(c);
    switch (c) {
        case 0x20AC: return 0x80;
        case 0x201A: return 0x82;
        case 0x0192: return 0x83;
        case 0x201E: return 0x84;
        case 0x2026: return 0x85;
        case 0x2020: return 0x86;
        case 0x2021: return 0x87;
        case 0x02C6: return 0x88;
        case 0x2030: return 0x89;
        case 0x0160: return 0x8A;
        case 0x2039: return 0x8B;
        case 0x0152: return 0x8C;
        case 0x017D: return 0x8E;
        case 0x2018: return 0x91;
        case 0x2019: return 0x92;
        case 0x201C: return 0x93;
        case 0x201D: return 0x94;
        case 0x2022: return 0x95;
        case 0x2013: return 0x96;
        case 0x2014: return 0x97;
        case 0x02DC: return 0x98;
        case 0x2122: return 0x99;
        case 0x0161: return 0x9A;
        case 0x203A: return 0x9B;
        case 0x0153: return 0x9C;
        case 0x017E: return 0x9E;
        case 0x0178: return 0x9F;
        default: return 0;
    }
}

// Follows sequences of UTF-8 among the bytes that characters stand for.
class Utf8Sequences {
  public:
    // How many characters the sequence has that ends here.
    int64_t add(uint8_t byte) {
        if (missing_ && (byte & 0xC0) == 0x80) return --missing_ ? 0 : length_;
        missing_ = between(byte, 0xC2, 0xDF) ? 1 : between(byte, 0xE0, 0xEF) ? 2 : between(byte, 0xF0, 0xF4) ? 3 : 0;
        length_ = missing_ + 1;
        return 0;
    }

  private:
    int64_t missing_ = 0, length_ = 0;
};

// Follows digits with single signs between them.
class Numbers {
  public:
    // Whether a number of the right length has just ended.
    bool add(char32_t c) {
        if (is_digit(c)) {
            ++digits_;
            separated_ = false;
            return false;
        }
        if (digits_ && !separated_ && (c == ' ' || c == '-' || c == '.')) {
            separated_ = true;
            return false;
        }
        const bool ended = digits_ >= SHORTEST_NUMBER && digits_ <= LONGEST_NUMBER;
        digits_ = 0;
        separated_ = false;
        return ended;
    }

  private:
    int64_t digits_ = 0;
    bool separated_ = false;
};

// Follows what a wrong decoding that cannot be undone leaves behind.
class LostText {
  public:
    // How many characters this one shows to be lost, itself and those before.
    int64_t add(char32_t c) {
        run_ = c == last_[1] ? run_ + 1 : 1;
        int64_t lost = 0;
        if (c == 0xFFFD || between(c, 0xE000, 0xF8FF) || between(c, 0xF0000, 0x10FFFD)) {
            lost = 1;
        } else if (c == 0x62F7 && last_[1] == 0x65A4 && last_[0] == 0x951F) {  // 锟斤拷: U+FFFD twice, read as GBK
            lost = 3;
        } else if (c == 0x70EB || c == 0x5C6F) {  // 烫, 屯: memory that was never written, read as GBK
            lost = run_ == 3 ? 3 : run_ > 3 ? 1 : 0;
        }
        last_[0] = last_[1];
        last_[1] = c;
        return lost;
    }

  private:
    char32_t last_[2] = {0, 0};
    int64_t run_ = 0;
};

}  // namespace

TextProfile profile_text(std::string_view text) {
    TextProfile profile;
    Utf8Sequences sequences;
    Numbers numbers;
    LostText lost;
    char32_t last = 0;
    int64_t run = 0;
    bool in_word = false;
    int64_t characters[KINDS] = {}, counted[KINDS] = {};
    for (size_t at = 0; at < text.size();) {
        const char32_t c = decode_character(text, at);
        run = c == last ? run + 1 : 1;
        last = c;
        const Kind kind = kind_of(c);
        const auto place = static_cast<size_t>(kind);
        ++characters[place];
        counted[place] += run <= COUNTED_RUN;
        const bool word = kind <= LAST_OF_WORDS;
        profile.words += word && !in_word;
        in_word = word;
        profile.digit_groups += numbers.add(c);
        if (c < 0x80) {
            ++profile.ascii;
            sequences.add(0);
            lost.add(c);
            continue;
        }
        profile.accented += kind == Kind::LATIN;
        profile.lost += lost.add(c);
        const uint8_t byte = latin_byte(c);
        profile.high_latin += byte != 0;
        profile.utf8_as_latin += sequences.add(byte);
    }
    profile.digit_groups += numbers.add(0);
    const auto of = [&characters](Kind kind) { return characters[static_cast<size_t>(kind)]; };
    profile.spaces = of(Kind::SPACE);
    profile.han = of(Kind::HAN);
    profile.kana = of(Kind::KANA);
    profile.hangul = of(Kind::HANGUL);
    profile.latin = of(Kind::LATIN);
    profile.other_letters = of(Kind::OTHER_LETTER);
    profile.characters = std::accumulate(characters, characters + KINDS, int64_t{0});
    profile.counted = std::accumulate(counted, counted + KINDS, int64_t{0});
    profile.text = profile.counted - counted[static_cast<size_t>(Kind::SYMBOL)];
    return profile;
}

}  // namespace mindllm
