// Encodes texts by units that come back again and again, so that most are looked up and not encoded.
//
// A text is cut between any two characters that no piece of the vocabulary holds side by side. Byte pair encoding merges
// two neighbours only if a piece of the vocabulary results, so no merge ever crosses such a border, and what happens on
// one side of it has no bearing on the other: the ids of a text are those of its units, one after the other. English
// falls into words, Chinese into runs of a few characters. (mindllm_engine/corpus/sentencepiece_model.py says for which
// models this holds.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace mindllm {

// Which characters some piece holds side by side: a bit for each hash of a pair. Pairs that share a bit with another
// make units longer, and nothing else.
class NeighbourSet {
  public:
    explicit NeighbourSet(const std::vector<std::string>& pieces);
    // Characters are the bytes of their UTF-8 as one number.
    bool holds(uint32_t left, uint32_t right) const {
        const uint64_t bit = hash(left, right) >> shift_;
        return bits_[bit >> 6] >> (bit & 63) & 1;
    }

  private:
    static uint64_t hash(uint32_t left, uint32_t right) {
        return (uint64_t{left} * 0x9E3779B97F4A7C15u ^ right) * 0xD6E8FEB86659FD93u;
    }

    int shift_;
    std::vector<uint64_t> bits_;
};

// Not thread-safe.
class UnitEncoder {
  public:
    // Gives the ids of units, in their order.
    using Encode = std::function<std::vector<std::vector<int32_t>>(const std::vector<std::string_view>& units)>;

    // `pieces`: of the vocabulary, in UTF-8, with U+2581 for a space. The cache is emptied before a call that finds more
    // than `cache_bytes` in it; within a call it grows by as much as the texts have of new units.
    UnitEncoder(const std::vector<std::string>& pieces, size_t cache_bytes);

    // The ids of texts in UTF-8, back to back, and how many each has. `encode` is called once, with the units that are
    // not in the cache, each once; U+2581 in a text is a unit of its own. An exception in it leaves an empty cache.
    // FormatError if it does not give ids for every unit, or a text has more than 2^31 - 1 ids.
    void encode(const std::vector<std::string_view>& texts, const Encode& encode, std::vector<int32_t>& ids,
                std::vector<int32_t>& lengths);

    size_t cache_bytes() const;

  private:
    struct Unit {
        size_t text, bytes;  // in text_
        size_t ids, count;   // in ids_
    };
    struct Slot {
        uint32_t hash = 0;
        uint32_t unit = 0;  // its number + 1; 0: the slot is empty
    };

    void clear();
    void cut(std::string_view text);
    uint32_t find_or_add(std::string_view unit);
    void grow();
    void learn_new_units(size_t first, const Encode& encode);
    void gather(const std::vector<size_t>& text_ends, std::vector<int32_t>& ids, std::vector<int32_t>& lengths) const;

    const NeighbourSet neighbours_;
    const size_t cache_limit_;
    std::vector<Slot> slots_;  // an open-addressing table of a power of two, at most half full
    std::vector<Unit> units_;
    std::string text_;
    std::vector<int32_t> ids_;
    std::vector<uint32_t> cut_;  // the units of all texts of a call
};

}  // namespace mindllm
