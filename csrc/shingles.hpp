// What two texts are compared by: hashes of their n-grams of words or characters, after normalisation.
//
// A text is cut into units. A unit is a run of letters and digits (a word), or one character of a script that is written
// without spaces (Chinese, Japanese, Thai ...). Everything else separates units and is itself ignored: spaces,
// punctuation, symbols, emoji, control characters. ASCII, full-width, Latin-1, Greek and Cyrillic letters are taken as
// small, full-width ones as ASCII. n neighbouring units make a shingle; so in Chinese text it is one of characters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>

namespace mindllm {

// A bijection of 64-bit numbers that scatters them (the finaliser of SplitMix64).
inline uint64_t mix_bits(uint64_t x) {
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

// Of bytes, for telling contents apart; not for adversaries.
uint64_t hash_bytes(std::string_view bytes);

struct ShingleCounts {
    uint64_t units = 0;
    uint64_t shingles = 0;
    uint64_t content = 0;  // hash of all units in their order
};

constexpr size_t SHINGLES_AT_ONCE = 256;

// Hands over the hashes of a text's shingles, up to SHINGLES_AT_ONCE at a time. A text of 1 to n - 1 units has one shingle. The
// text is UTF-8 (other bytes give some units or other); n is at least 1. Linear time, constant memory.
using TakeShingles = std::function<void(const uint64_t* hashes, size_t count)>;
ShingleCounts cut_into_shingles(std::string_view text, size_t n, const TakeShingles& take);

}  // namespace mindllm
