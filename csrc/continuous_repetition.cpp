// Finding what is repeated at each period and cutting copies out.
#include "continuous_repetition.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "words.hpp"

namespace mindllm {

namespace {

constexpr size_t EXAMPLE_BYTES = 300;

struct Cut {
    size_t begin, end;
};

// The first `at` from `from` on where text[at] differs from text[at - period].
size_t end_of_match(std::string_view text, size_t from, size_t period) {
    const char* data = text.data();
    size_t at = from;
    for (uint64_t here, before; at + 8 <= text.size(); at += 8) {
        std::memcpy(&here, data + at, 8);
        std::memcpy(&before, data + at - period, 8);
        if (here != before) break;
    }
    while (at < text.size() && data[at] == data[at - period]) ++at;
    return at;
}

bool is_sentence_punctuation(uint32_t character) {
    constexpr uint32_t SIGNS[] = {'!', '\'', ',', '-', '.', ':', ';', '?', '~', 0x00B7, 0x2014, 0x2018, 0x2019, 0x201C,
                                  0x201D, 0x2026, 0x3001, 0x3002, 0xFF01, 0xFF0C, 0xFF1A, 0xFF1B, 0xFF1F, 0xFF5E};
    return std::find(std::begin(SIGNS), std::end(SIGNS), character) != std::end(SIGNS);
}

// What is made of words and nothing else; see shorten_repetition.
bool is_phrase(std::string_view copy) {
    bool space = false, letter = false, ideograph = false;
    for (size_t at = 0; at < copy.size();) {
        const uint32_t character = next_character(copy, at);
        const CharacterKind kind = character_kind(character);
        if ((character >= '0' && character <= '9') || character == '_') return false;
        space |= kind == CharacterKind::space;
        letter |= kind == CharacterKind::letter;
        ideograph |= kind == CharacterKind::ideograph;
        if (kind == CharacterKind::other && !is_sentence_punctuation(character)) return false;
    }
    return ideograph || (letter && space);
}

// What to cut at one period; in order and apart.
std::vector<Cut> find_cuts(std::string_view text, size_t period, size_t copies, size_t keep) {
    std::vector<Cut> cuts;
    const size_t stride = (copies - 1) * period;
    size_t done = 0;  // nothing before belongs to another repetition
    for (size_t at = period; at < text.size(); at += stride) {
        if (text[at] != text[at - period]) continue;
        size_t end = end_of_match(text, at, period);
        size_t begin = at;
        while (begin > done + period && text[begin - 1] == text[begin - 1 - period]) --begin;
        begin -= period;
        const size_t matched = end;
        while (begin < end && is_continuation(text[begin])) ++begin;
        while (end < text.size() && end > begin && is_continuation(text[end])) --end;
        const size_t found = (end - begin) / period;
        if (found >= copies && is_phrase(text.substr(begin, period))) {
            cuts.push_back({begin + keep * period, begin + found * period});
            done = end;
        }
        while (at + stride < matched) at += stride;
    }
    return cuts;
}

size_t remove(std::string& text, const std::vector<Cut>& cuts) {
    size_t kept = 0, from = 0, removed = 0;
    const auto keep_until = [&](size_t end) {
        std::memmove(text.data() + kept, text.data() + from, end - from);
        kept += end - from;
    };
    for (const Cut& cut : cuts) {
        removed += count_characters(std::string_view(text).substr(cut.begin, cut.end - cut.begin));
        keep_until(cut.begin);
        from = cut.end;
    }
    keep_until(text.size());
    text.resize(kept);
    return removed;
}

}  // namespace

Shortened shorten_repetition(std::string_view text, size_t copies, size_t keep) {
    Shortened result;
    result.text = text;
    result.chars = count_characters(text);
    size_t most = 0;
    for (size_t period = 2; period <= MAX_PERIOD && copies * period <= result.text.size(); ++period) {
        const std::vector<Cut> cuts = find_cuts(result.text, period, copies, keep);
        if (cuts.empty()) continue;
        const Cut& largest = *std::max_element(
            cuts.begin(), cuts.end(), [](const Cut& a, const Cut& b) { return a.end - a.begin < b.end - b.begin; });
        if (largest.end - largest.begin > most) {
            most = largest.end - largest.begin;
            const size_t begin = largest.begin - keep * period;
            size_t end = std::min(begin + EXAMPLE_BYTES, result.text.size());
            while (end < result.text.size() && is_continuation(result.text[end])) --end;
            result.example = result.text.substr(begin, end - begin);
        }
        result.removed += remove(result.text, cuts);
    }
    return result;
}

}  // namespace mindllm
