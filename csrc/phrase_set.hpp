// Counts the phrases of a short list in a text: a few hundred, where building an automaton would be more than it needs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mindllm {

class PhraseSet {
  public:
    // In UTF-8, of two bytes at least. Letters of ASCII match in either case.
    explicit PhraseSet(const std::vector<std::string>& phrases);

    struct Found {
        int64_t phrases = 0;
        int64_t characters = 0;  // in them
    };
    // Those that occur, leftmost longest, not overlapping; a phrase that begins or ends with a letter or digit of ASCII
    // only as whole words. Linear in the text's length for a given list.
    Found count(std::string_view text) const;

  private:
    bool matches(std::string_view text, size_t at, const std::string& phrase) const;

    std::vector<std::string> phrases_;  // by their first two bytes, and of those the longest first
    std::vector<uint32_t> first_;       // where those with some first two bytes begin
};

}  // namespace mindllm
