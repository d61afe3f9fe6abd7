// Decoding, normalising and cutting texts, and a rolling hash over the last n units.
#include "shingles.hpp"

#include <cstring>
#include <iterator>
#include <vector>

namespace mindllm {

namespace {

constexpr uint64_t WORD_FACTOR = 0x9E3779B97F4A7C15u, ROLLING_FACTOR = 0xD6E8FEB86659FD93u;

bool is_continuation(char byte) { return (static_cast<uint8_t>(byte) & 0xC0) == 0x80; }

// The code point beyond ASCII at `at`, and `at` moved behind it.
uint32_t next_code_point(std::string_view text, size_t& at) {
    const auto first = static_cast<uint8_t>(text[at++]);
    if (first < 0xC0) return first;
    if (first < 0xF0 && first >= 0xE0 && at + 2 <= text.size()) {  // most of Chinese text
        const auto second = static_cast<uint8_t>(text[at]), third = static_cast<uint8_t>(text[at + 1]);
        at += 2;
        return (first & 0x0Fu) << 12 | (second & 0x3Fu) << 6 | (third & 0x3Fu);
    }
    uint32_t code = first < 0xE0 ? first & 0x1F : first < 0xF0 ? first & 0x0F : first & 0x07;
    while (at < text.size() && is_continuation(text[at])) code = code << 6 | (static_cast<uint8_t>(text[at++]) & 0x3F);
    return code;
}

enum class Kind : uint8_t { SEPARATOR, LETTER, WHOLE_UNIT };

struct Range {
    uint32_t first, last;
    Kind kind;
};

// Of code points from U+0080 on; those in no range are letters.
constexpr Range RANGES[] = {
    {0x80, 0xA9, Kind::SEPARATOR},          // C1 controls, Latin-1 signs
    {0xAB, 0xB1, Kind::SEPARATOR},
    {0xB4, 0xB4, Kind::SEPARATOR},
    {0xB6, 0xB8, Kind::SEPARATOR},
    {0xBB, 0xBF, Kind::SEPARATOR},
    {0xD7, 0xD7, Kind::SEPARATOR},          // multiplication sign
    {0xF7, 0xF7, Kind::SEPARATOR},          // division sign
    {0x0E00, 0x0FFF, Kind::WHOLE_UNIT},     // Thai, Lao, Tibetan
    {0x1000, 0x109F, Kind::WHOLE_UNIT},     // Myanmar
    {0x1780, 0x17FF, Kind::WHOLE_UNIT},     // Khmer
    {0x2000, 0x206F, Kind::SEPARATOR},      // punctuation, special spaces
    {0x20A0, 0x20CF, Kind::SEPARATOR},      // currencies
    {0x2190, 0x2BFF, Kind::SEPARATOR},      // arrows, mathematical and other symbols
    {0x2E00, 0x2E7F, Kind::SEPARATOR},      // more punctuation
    {0x2E80, 0x2FDF, Kind::WHOLE_UNIT},     // radicals
    {0x2FF0, 0x3004, Kind::SEPARATOR},      // CJK punctuation
    {0x3005, 0x3007, Kind::WHOLE_UNIT},     // iteration mark, zero
    {0x3008, 0x3020, Kind::SEPARATOR},
    {0x3021, 0x3029, Kind::WHOLE_UNIT},     // Hangzhou numerals
    {0x302A, 0x3030, Kind::SEPARATOR},
    {0x3031, 0x318F, Kind::WHOLE_UNIT},     // kana, bopomofo
    {0x3190, 0x4DBF, Kind::WHOLE_UNIT},     // Han
    {0x4DC0, 0x4DFF, Kind::SEPARATOR},      // hexagrams
    {0x4E00, 0x9FFF, Kind::WHOLE_UNIT},     // Han
    {0xD800, 0xF8FF, Kind::SEPARATOR},      // no characters, private use
    {0xF900, 0xFAFF, Kind::WHOLE_UNIT},     // Han
    {0xFE00, 0xFE6F, Kind::SEPARATOR},      // variation selectors, forms of punctuation
    {0xFEFF, 0xFF0F, Kind::SEPARATOR},      // full-width punctuation; its letters and digits are folded before
    {0xFF1A, 0xFF20, Kind::SEPARATOR},
    {0xFF3B, 0xFF40, Kind::SEPARATOR},
    {0xFF5B, 0xFF65, Kind::SEPARATOR},
    {0xFF66, 0xFF9F, Kind::WHOLE_UNIT},     // half-width kana
    {0xFFE0, 0xFFFF, Kind::SEPARATOR},
    {0x1F000, 0x1FAFF, Kind::SEPARATOR},    // emoji and their like
    {0x20000, 0x3FFFF, Kind::WHOLE_UNIT},   // Han
    {0xE0000, 0xFFFFFFFF, Kind::SEPARATOR},
};

Kind kind_in_ranges(uint32_t code) {
    if (code < 0x80) {
        const bool digit = code >= '0' && code <= '9';
        const bool letter = (code >= 'A' && code <= 'Z') || (code >= 'a' && code <= 'z');
        return digit || letter ? Kind::LETTER : Kind::SEPARATOR;
    }
    size_t low = 0, high = std::size(RANGES);
    while (low < high) {  // the first range that does not end before the code point
        const size_t middle = (low + high) / 2;
        if (RANGES[middle].last < code) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < std::size(RANGES) && RANGES[low].first <= code ? RANGES[low].kind : Kind::LETTER;
}

constexpr uint32_t TABLED = 0x10000;

// Of the first 65,536 code points, which nearly all text is made of.
const std::vector<Kind>& kind_table() {
    static const std::vector<Kind> table = [] {
        std::vector<Kind> kinds(TABLED);
        for (uint32_t code = 0; code < TABLED; ++code) kinds[code] = kind_in_ranges(code);
        return kinds;
    }();
    return table;
}

// A letter or digit as it counts.
uint32_t folded(uint32_t code) {
    if (code >= 0xFF10 && code <= 0xFF5A) code -= 0xFEE0;  // full-width
    if (code >= 'A' && code <= 'Z') return code + 32;
    if (code < 0xC0 || code > 0x42F) return code;
    if (code <= 0xDE) return code + 32;                                                        // Latin-1
    if ((code >= 0x391 && code <= 0x3A9 && code != 0x3A2) || code >= 0x410) return code + 32;  // Greek, Cyrillic
    if (code >= 0x400 && code <= 0x40F) return code + 80;
    return code;
}

constexpr uint64_t EACH_BYTE = 0x0101010101010101u, HIGH_BITS = 0x80 * EACH_BYTE;

// The ASCII letters and digits at the beginning of eight bytes.
struct AsciiRun {
    uint64_t bytes;  // folded, and zeros behind them
    size_t length;
};

AsciiRun ascii_run(std::string_view text, size_t at) {
    uint64_t raw = 0;
    if (text.size() - at >= 8) {
        std::memcpy(&raw, text.data() + at, 8);
    } else {
        std::memcpy(&raw, text.data() + at, text.size() - at);
    }
    // With its high bit clear, a byte b has it set in b + 0x80 - first from `first` on, and in b + 0x7F - last behind it.
    const uint64_t low = raw & ~HIGH_BITS, small = low | 0x20 * EACH_BYTE;
    const uint64_t letter = (small + (0x80 - 'a') * EACH_BYTE) & ~(small + (0x7F - 'z') * EACH_BYTE);
    const uint64_t digit = (low + (0x80 - '0') * EACH_BYTE) & ~(low + (0x7F - '9') * EACH_BYTE);
    const uint64_t others = ~((letter | digit) & ~raw) & HIGH_BITS;
    if (others == 0) return {small, 8};
    const auto length = static_cast<size_t>(__builtin_ctzll(others)) / 8;
    return {small & ((uint64_t{1} << 8 * length) - 1), length};
}

// The hash of a word, of its folded bytes, eight at a time.
class Word {
  public:
    // Up to `8 - fill` bytes: how many were taken.
    size_t add(AsciiRun run) {
        const size_t taken = run.length < 8 - fill_ ? run.length : 8 - fill_;
        pending_ |= run.bytes << 8 * fill_;
        fill_ += taken;
        any_ = true;
        if (fill_ == 8) absorb();
        return taken;
    }
    void add(uint32_t code) {
        for (; code != 0; code >>= 8) add({code & 0xFF, 1});
    }
    bool any() const { return any_; }
    uint64_t finish() {
        const uint64_t hash = (absorbed_ ^ (pending_ + fill_)) * WORD_FACTOR;
        *this = Word();
        return hash ^ hash >> 32;
    }

  private:
    void absorb() {
        absorbed_ = (absorbed_ ^ pending_) * ROLLING_FACTOR;
        absorbed_ ^= absorbed_ >> 32;
        pending_ = fill_ = 0;
    }

    uint64_t absorbed_ = 0, pending_ = 0;
    size_t fill_ = 0;
    bool any_ = false;
};

// The units so far, as the hashes of the n-grams that end with each.
class Roller {
  public:
    Roller(size_t n, const TakeShingles& take) : n_(n), take_(take), last_(n) {
        for (size_t i = 0; i < n; ++i) leaving_factor_ *= ROLLING_FACTOR;
        batch_.reserve(SHINGLES_AT_ONCE);
    }

    void add(uint64_t unit) {
        rolling_ = rolling_ * ROLLING_FACTOR + unit - last_[place_] * leaving_factor_;
        last_[place_] = unit;
        if (++place_ == n_) place_ = 0;
        counts_.content = counts_.content * WORD_FACTOR + unit;
        if (++counts_.units >= n_) add_shingle();
    }

    ShingleCounts finish() {
        if (counts_.units > 0 && counts_.units < n_) add_shingle();
        if (!batch_.empty()) take_(batch_.data(), batch_.size());
        return counts_;
    }

  private:
    void add_shingle() {
        ++counts_.shingles;
        batch_.push_back(mix_bits(rolling_));
        if (batch_.size() < SHINGLES_AT_ONCE) return;
        take_(batch_.data(), batch_.size());
        batch_.clear();
    }

    const size_t n_;
    const TakeShingles& take_;
    std::vector<uint64_t> last_;  // the last n units, as a ring
    size_t place_ = 0;            // of the oldest
    uint64_t leaving_factor_ = 1, rolling_ = 0;
    ShingleCounts counts_;
    std::vector<uint64_t> batch_;
};

}  // namespace

uint64_t hash_bytes(std::string_view bytes) {
    uint64_t hash = mix_bits(bytes.size() + WORD_FACTOR);
    size_t at = 0;
    for (; at + 8 <= bytes.size(); at += 8) {
        uint64_t word;
        std::memcpy(&word, bytes.data() + at, 8);
        hash = (hash ^ word) * WORD_FACTOR;
        hash ^= hash >> 32;
    }
    uint64_t rest = 0;
    if (at < bytes.size()) std::memcpy(&rest, bytes.data() + at, bytes.size() - at);
    return mix_bits(hash * WORD_FACTOR + rest);
}

ShingleCounts cut_into_shingles(std::string_view text, size_t n, const TakeShingles& take) {
    const std::vector<Kind>& kinds = kind_table();
    Roller roller(n, take);
    Word word;
    for (size_t at = 0; at < text.size();) {
        if (static_cast<uint8_t>(text[at]) < 0x80) {
            const AsciiRun run = ascii_run(text, at);
            const size_t taken = run.length > 0 ? word.add(run) : 0;
            at += taken;
            if (taken < run.length || run.length == 8) continue;
            if (at < text.size() && static_cast<uint8_t>(text[at]) < 0x80) {  // a separator
                ++at;
                if (word.any()) roller.add(word.finish());
            }
            continue;
        }
        const uint32_t code = next_code_point(text, at);
        const Kind kind = code < TABLED ? kinds[code] : kind_in_ranges(code);
        if (kind == Kind::LETTER) {
            word.add(folded(code));
            continue;
        }
        if (word.any()) roller.add(word.finish());
        if (kind == Kind::WHOLE_UNIT) roller.add(code * WORD_FACTOR);
    }
    if (word.any()) roller.add(word.finish());
    return roller.finish();
}

}  // namespace mindllm
