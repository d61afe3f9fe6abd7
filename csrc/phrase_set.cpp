// Phrases by their first two bytes: at most places of a text there is none to compare.
#include "phrase_set.hpp"

#include <algorithm>
#include <tuple>

#include "characters.hpp"
#include "errors.hpp"

namespace mindllm {

namespace {

uint8_t lower(char c) {
    const auto byte = static_cast<uint8_t>(c);
    return between(byte, 'A', 'Z') ? byte | 32 : byte;
}

size_t key_at(std::string_view text, size_t at) { return size_t{lower(text[at])} << 8 | lower(text[at + 1]); }

bool is_word(char c) {
    const auto byte = static_cast<uint8_t>(c);
    return is_ascii_letter(byte) || is_digit(byte);
}

}  // namespace

PhraseSet::PhraseSet(const std::vector<std::string>& phrases) : phrases_(phrases), first_((1 << 16) + 1) {
    for (std::string& phrase : phrases_) {
        if (phrase.size() < 2) throw FormatError("a phrase must have two bytes at least");
        std::transform(phrase.begin(), phrase.end(), phrase.begin(), lower);
        ++first_[key_at(phrase, 0) + 1];
    }
    for (size_t key = 1; key < first_.size(); ++key) first_[key] += first_[key - 1];
    std::sort(phrases_.begin(), phrases_.end(), [](const std::string& a, const std::string& b) {
        return std::make_tuple(key_at(a, 0), b.size()) < std::make_tuple(key_at(b, 0), a.size());
    });
}

PhraseSet::Found PhraseSet::count(std::string_view text) const {
    Found found;
    for (size_t at = 0; at + 1 < text.size();) {
        const size_t key = key_at(text, at);
        size_t step = 1;
        for (size_t i = first_[key]; i < first_[key + 1]; ++i) {
            if (!matches(text, at, phrases_[i])) continue;
            ++found.phrases;
            step = phrases_[i].size();
            for (const char c : phrases_[i]) found.characters += (static_cast<uint8_t>(c) & 0xC0) != 0x80;
            break;
        }
        at += step;
    }
    return found;
}

bool PhraseSet::matches(std::string_view text, size_t at, const std::string& phrase) const {
    const size_t end = at + phrase.size();
    if (end > text.size()) return false;
    if (is_word(phrase.front()) && at > 0 && is_word(text[at - 1])) return false;
    if (is_word(phrase.back()) && end < text.size() && is_word(text[end])) return false;
    return std::equal(phrase.begin(), phrase.end(), text.begin() + static_cast<std::ptrdiff_t>(at),
                      [](char a, char b) { return static_cast<uint8_t>(a) == lower(b); });
}

}  // namespace mindllm
