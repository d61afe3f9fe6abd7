// How much of a text repeats what stands before it: the quantities of table A1 of Gopher (arXiv 2112.11446), counted as
// datatrove's GopherRepetitionFilter counts them, to the character. What is too much, its caller decides.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

namespace mindllm {

// Of a longer text only the beginning is measured, so that memory is bounded (some 500 MB for the most hostile text).
constexpr size_t MAX_MEASURED_BYTES = size_t{1} << 23;

// What is repeated: how many times, of how many characters in all, and where in the text, in characters, the first is.
struct Repeated {
    size_t count = 0;
    size_t chars = 0;
    size_t at = 0;
};

struct Repetition {
    size_t chars = 0;  // of what was measured
    size_t paragraphs = 0, lines = 0, words = 0;
    Repeated duplicate_paragraphs, duplicate_lines;  // equal to an earlier one
    std::vector<Repeated> top_n_grams;               // occurrences of the most frequent; spaces between words count
    std::vector<Repeated> duplicate_n_grams;         // equal to an earlier one, each character counted once
};

// `text`: valid UTF-8. Paragraphs lie between two or more newlines, lines between one or more; n-grams are of words
// (words.hpp), for each n of `top_n` and `duplicate_n`. Of n-grams equally frequent the first is the top one. Duplicate
// n-grams are compared without the borders of their words, as datatrove does. Linear in the text's length.
Repetition measure_repetition(std::string_view text, const std::vector<size_t>& top_n,
                              const std::vector<size_t>& duplicate_n);

}  // namespace mindllm
