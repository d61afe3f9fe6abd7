// Phrases repeated over and over without a break, "哈哈哈哈哈" or "buy now buy now buy now", shortened to a few copies.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace mindllm {

// Longest phrase, in bytes: 64 Chinese characters, some 30 English words. Longer ones are lines or sentences.
constexpr size_t MAX_PERIOD = 192;

struct Shortened {
    std::string text;
    size_t chars = 0;    // of the text before
    size_t removed = 0;  // of these
    std::string example; // the beginning of the repetition from which most was removed
};

// Shortens to `keep` copies (one at least) what is repeated at least `copies` times (three at least, and more than
// `keep`). A phrase is made of letters, spaces and the punctuation of sentences: nothing with digits or other signs is
// touched, as in tables, formulas and code; and it holds an ideograph, or a letter and a space: "0xffffffff" stays.
//
// For each period p in bytes, from short to long, only every (copies - 1) * p-th byte is compared with the one p
// before, since a repetition cannot lie between two of these: 2 comparisons a byte over all periods on ordinary text,
// and a few times MAX_PERIOD on any.
Shortened shorten_repetition(std::string_view text, size_t copies, size_t keep);

}  // namespace mindllm
