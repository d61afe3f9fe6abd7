// Duplicate lines and paragraphs, frequent n-grams and duplicate n-grams, each by one pass and a table of hashes.
#include "repetition.hpp"

#include <algorithm>
#include <cstdint>

#include "hash_table.hpp"
#include "words.hpp"

namespace mindllm {

namespace {

// Polynomials of bytes modulo the Mersenne prime 2^61 - 1: the hash of two strings' concatenation follows from theirs.
constexpr uint64_t PRIME = (uint64_t{1} << 61) - 1;
constexpr uint64_t BASE = 0x1B873593CC9E2D51u % PRIME;

uint64_t multiply(uint64_t a, uint64_t b) {
    const auto product = static_cast<unsigned __int128>(a) * b;
    const uint64_t sum = (static_cast<uint64_t>(product) & PRIME) + static_cast<uint64_t>(product >> 61);
    return sum >= PRIME ? sum - PRIME : sum;
}

uint64_t add(uint64_t a, uint64_t b) { return a + b >= PRIME ? a + b - PRIME : a + b; }

uint64_t polynomial(std::string_view bytes) {
    uint64_t hash = 0;
    for (const char byte : bytes) hash = add(multiply(hash, BASE), static_cast<uint8_t>(byte) + 1);
    return hash;
}

// BASE to the power of a number of bytes.
class Powers {
  public:
    Powers() : powers_(256, 1) {
        for (size_t i = 1; i < powers_.size(); ++i) powers_[i] = multiply(powers_[i - 1], BASE);
    }
    uint64_t operator()(size_t exponent) const {
        uint64_t power = powers_[exponent & 255];
        uint64_t factor = powers_[255];
        factor = multiply(factor, BASE);  // of 256 bytes
        for (exponent >>= 8; exponent; exponent >>= 1) {
            if (exponent & 1) power = multiply(power, factor);
            factor = multiply(factor, factor);
        }
        return power;
    }

  private:
    std::vector<uint64_t> powers_;
};

struct MeasuredWord {
    uint64_t hash, power;
    uint32_t at, chars;
};

std::vector<MeasuredWord> words_of(std::string_view text) {
    static const Powers powers;
    std::vector<MeasuredWord> words;
    words.reserve(text.size() / 5);
    for_each_word(text, [&](const Word& word) {
        words.push_back({polynomial(text.substr(word.begin, word.end - word.begin)), powers(word.end - word.begin),
                         static_cast<uint32_t>(word.at), static_cast<uint32_t>(word.chars)});
    });
    return words;
}

// Parts of a text between runs of at least `newlines` newlines.
struct Parts {
    size_t count = 0;
    Repeated duplicates;
};

Parts find_duplicate_parts(std::string_view text, size_t newlines) {
    struct Nothing {};
    HashTable<Nothing> seen;
    Parts parts;
    size_t place = 0;  // of `begin`, in characters
    for (size_t begin = 0;;) {
        size_t end = begin, behind = text.size();
        for (;; end = behind) {
            end = std::min(text.find('\n', end), text.size());
            behind = std::min(text.find_first_not_of('\n', end), text.size());
            if (end == text.size() || behind - end >= newlines) break;
        }
        const std::string_view part = text.substr(begin, end - begin);
        const size_t chars = count_characters(part);
        ++parts.count;
        if (!seen.find_or_add(hash_bytes(part)).second) {
            if (parts.duplicates.count == 0) parts.duplicates.at = place;
            ++parts.duplicates.count;
            parts.duplicates.chars += chars;
        }
        if (end == text.size()) return parts;
        place += chars + (behind - end);
        begin = behind;
    }
}

std::string_view stripped(std::string_view text, size_t& chars_before) {
    size_t begin = text.size(), end = 0;
    chars_before = 0;
    bool before = true;
    for (size_t at = 0; at < text.size();) {
        const size_t start = at;
        if (character_kind(next_character(text, at)) != CharacterKind::space) {
            if (before) begin = start;
            before = false;
            break;
        }
        ++chars_before;
    }
    if (before) return {};
    for (end = text.size(); end > begin;) {
        size_t start = end - 1;
        while (is_continuation(text[start])) --start;
        size_t at = start;
        if (character_kind(next_character(text, at)) != CharacterKind::space) break;
        end = start;
    }
    return text.substr(begin, end - begin);
}

struct Occurrences {
    uint32_t count = 0;
    uint32_t first = 0;
};

// `keys`: a hash for each n-gram, by its first word.
Repeated find_top(const std::vector<MeasuredWord>& words, const std::vector<uint64_t>& keys, size_t n) {
    if (words.size() < n) return {};
    const size_t n_grams = words.size() - n + 1;
    HashTable<Occurrences> table(n_grams);
    Occurrences top;
    for (size_t i = 0; i < n_grams; ++i) {
        const auto [found, made] = table.find_or_add(mix(keys[i]));
        if (made) found.first = static_cast<uint32_t>(i);
        ++found.count;
        if (found.count > top.count || (found.count == top.count && found.first < top.first)) top = found;
    }
    size_t chars = n - 1;
    for (size_t i = top.first; i < top.first + n; ++i) chars += words[i].chars;
    return {top.count, chars * top.count, words[top.first].at};
}

Repeated find_duplicates(const std::vector<MeasuredWord>& words, const std::vector<uint64_t>& keys, size_t n) {
    struct Nothing {};
    Repeated repeated;
    if (words.size() < n) return repeated;
    const size_t n_grams = words.size() - n + 1;
    HashTable<Nothing> seen(n_grams);
    for (size_t i = 0; i < n_grams;) {
        if (seen.find_or_add(mix(keys[i])).second) {
            ++i;
            continue;
        }
        if (repeated.count == 0) repeated.at = words[i].at;
        ++repeated.count;
        for (const size_t end = i + n; i < end; ++i) repeated.chars += words[i].chars;
    }
    return repeated;
}

// Calls `call(n, keys)` for each n from 1 to `longest`. `append(key, word)`: the key of an n-gram with one more word.
template <typename Append, typename Call>
void for_each_n(const std::vector<MeasuredWord>& words, size_t longest, Append append, Call call) {
    std::vector<uint64_t> keys(words.size(), 0);
    for (size_t n = 1; n <= longest && n <= words.size(); ++n) {
        for (size_t i = 0; i + n <= words.size(); ++i) keys[i] = append(keys[i], words[i + n - 1]);
        call(n, keys);
    }
}

size_t longest_of(const std::vector<size_t>& numbers) {
    return numbers.empty() ? 0 : *std::max_element(numbers.begin(), numbers.end());
}

}  // namespace

Repetition measure_repetition(std::string_view text, const std::vector<size_t>& top_n,
                              const std::vector<size_t>& duplicate_n) {
    if (text.size() > MAX_MEASURED_BYTES) {
        size_t end = MAX_MEASURED_BYTES;
        while (is_continuation(text[end])) --end;
        text = text.substr(0, end);
    }
    Repetition result;
    result.chars = count_characters(text);

    size_t before = 0;
    const Parts paragraphs = find_duplicate_parts(stripped(text, before), 2);
    result.paragraphs = paragraphs.count;
    result.duplicate_paragraphs = paragraphs.duplicates;
    result.duplicate_paragraphs.at += before;
    const Parts lines = find_duplicate_parts(text, 1);
    result.lines = lines.count;
    result.duplicate_lines = lines.duplicates;

    const std::vector<MeasuredWord> words = words_of(text);
    result.words = words.size();
    result.top_n_grams.resize(top_n.size());
    const auto with_border = [](uint64_t key, const MeasuredWord& word) {
        return (key + word.hash) * 0x9E3779B97F4A7C15u;
    };
    for_each_n(words, longest_of(top_n), with_border, [&](size_t n, const std::vector<uint64_t>& keys) {
        for (size_t i = 0; i < top_n.size(); ++i) {
            if (top_n[i] == n) result.top_n_grams[i] = find_top(words, keys, n);
        }
    });
    result.duplicate_n_grams.resize(duplicate_n.size());
    const auto without_border = [](uint64_t key, const MeasuredWord& word) {
        return add(multiply(key, word.power), word.hash);
    };
    for_each_n(words, longest_of(duplicate_n), without_border, [&](size_t n, const std::vector<uint64_t>& keys) {
        for (size_t i = 0; i < duplicate_n.size(); ++i) {
            if (duplicate_n[i] == n) result.duplicate_n_grams[i] = find_duplicates(words, keys, n);
        }
    });
    return result;
}

}  // namespace mindllm
