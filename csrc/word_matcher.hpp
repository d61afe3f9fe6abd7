// Counts the words of a vocabulary in a text, in one pass: Aho and Corasick's automaton over the bytes of UTF-8.
//
// What counts as an occurrence:
// - A-Z and a-z are the same; nothing else is folded.
// - Where a word begins or ends with a letter or digit of a script that puts spaces between words (Latin, Greek,
//   Cyrillic ...), no such letter or digit stands beside it in the text. Chinese is found anywhere.
// - Occurrences do not overlap: the one that begins first counts, the longest where several begin there, and the search
//   goes on behind it.
//
// The automaton is a double array: the child of state s by a byte of class c is at base(s) + c, if the parent noted there
// is s. A state takes 16 bytes, and there is one for each different prefix of a word.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace mindllm {

struct WordCounts {
    std::unordered_map<int32_t, int64_t> occurrences;  // by the word's number
    size_t first = 0;                                  // the byte at which the first of them begins
};

// Thread-safe once built.
class WordMatcher {
  public:
    // Words in UTF-8. Of two that are the same but for case, the first is found. FormatError if there is no word, one is
    // empty or longer than MAX_WORD_BYTES, or all of them together are 2^31 bytes or more.
    explicit WordMatcher(const std::vector<std::string>& words);

    // Time is linear in the text, for any text; memory is that of the counts.
    WordCounts count(std::string_view text) const;

    size_t bytes() const { return states_.size() * sizeof(State) + words_.size() * sizeof(Word); }

    static constexpr size_t MAX_WORD_BYTES = 1023;

  private:
    struct State {
        int32_t base = 0;
        int32_t parent = -1;  // -1: no state is here, or this is the root
        int32_t fail = 0;     // the state of the longest suffix
        int32_t output = 0;   // the last of words_ that ends here, the longest first; 0: none
    };
    struct Word {
        int32_t number;
        int32_t shorter;  // that ends here as well; 0: none
        uint16_t length;  // in bytes
        bool spaced_begin, spaced_end;
    };
    class Builder;
    class Selection;

    bool stands_alone(const Word& word, std::string_view text, size_t begin, size_t end) const;

    std::array<uint8_t, 256> class_of_{};  // 0: in no word
    std::vector<State> states_;
    std::vector<uint16_t> depth_;
    std::vector<Word> words_;  // from 1
    size_t longest_ = 0;
};

}  // namespace mindllm
