// Which items of given texts, such as questions of a benchmark, stand in a document: by the n-grams that they share.
//
// Texts are compared by words (words.hpp) in lower case, full-width characters as their ASCII ones, without punctuation
// and without Latin letters by themselves, so that "(A) Paris" and "Paris" are the same. An item of ideographs for the
// most part has n-grams of `chars_n` words, any other of `words_n`; an item shorter than that is one n-gram, if it has
// at least `min_chars` or `min_words`. N-grams that more than `max_items` items have tell nothing and are left out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace mindllm {

struct OverlapRules {
    size_t words_n, chars_n;      // words in an n-gram
    size_t min_words, min_chars;  // in a short item
    size_t max_items;             // that have an n-gram
};

struct Overlap {
    size_t item;
    size_t words;       // of the item that can be found, being in some n-gram
    size_t covered;     // of these, in an n-gram that the document has
    size_t begin, end;  // from the first to the last of them, in characters of the document
};

class OverlapIndex {
  public:
    // FormatError for a rule below 1, more than MAX_N words in an n-gram, or a least length above that of an n-gram.
    explicit OverlapIndex(const OverlapRules& rules);

    // Items are numbered from 0. FormatError after `finish`.
    void add(std::string_view text);
    void finish();

    // Every item of which the document covers at least `share` (above 0), in their order. Linear in the length of the
    // text, in memory bounded by the index. FormatError before `finish`.
    std::vector<Overlap> find(std::string_view text, double share) const;

    size_t items() const { return items_.size(); }
    size_t short_items() const { return short_items_; }    // too short to be looked for
    size_t common_items() const { return common_items_; }  // all of whose n-grams too many items have
    size_t bytes() const;

    static constexpr size_t MAX_N = 256;

  private:
    struct Item {
        uint32_t n;      // words in its n-grams
        uint32_t words;  // in any n-gram that is left
    };
    struct NGram {
        uint64_t hash;
        uint32_t item, at;  // its place in the item, in words
    };
    struct Hit {
        uint32_t item, at;
        size_t begin, end;
    };

    void drop_common();
    void make_filter();
    bool passes(uint64_t seed) const {
        const uint64_t bits = seed_bits(seed);
        return (filter_[seed >> shift_] & bits) == bits;
    }
    // Four of the 64 bits of a seed's place in the filter.
    static uint64_t seed_bits(uint64_t seed) {
        const auto bit = [seed](int at) { return uint64_t{1} << (seed >> at & 63); };
        return bit(0) | bit(6) | bit(12) | bit(18);
    }
    std::vector<Hit> find_hits(std::string_view text) const;

    OverlapRules rules_;
    std::vector<Item> items_;
    std::vector<NGram> n_grams_;    // in the order of hashes
    std::vector<uint64_t> seeds_;   // hashes of the n-grams' last words; until `finish`
    std::vector<size_t> lengths_;   // of n-grams, ascending
    std::vector<uint64_t> powers_;  // of the base of hashes
    std::vector<uint64_t> filter_;  // a Bloom filter of the hashes of seeds, in blocks of 64 bits
    size_t seed_ = 0;               // words in a seed: as many as the shortest n-gram can have
    int shift_ = 63;
    size_t short_items_ = 0, common_items_ = 0;
    bool finished_ = false;
};

}  // namespace mindllm
