// Keyed permutations by arithmetic: where each position of [0, size) goes, with nothing stored.
//
// A Feistel network of six rounds permutes the smallest power of two that holds `size`; a place at or beyond `size` is
// walked on (the network is applied again) until it falls inside, which keeps the whole a bijection (Black and Rogaway,
// "Ciphers with arbitrary finite domains", 2002). Fewer than two walks are needed on average. The two halves differ by
// a bit where the number of bits is odd, and the rounds change them in turn.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

namespace mindllm {

// splitmix64: each bit of the result depends on every bit of the value.
uint64_t mix(uint64_t value);

// A 64-bit key from a seed and whatever else tells one use from another.
uint64_t derive_key(std::initializer_list<uint64_t> parts);

class KeyedPermutation {
  public:
    KeyedPermutation(int64_t size, uint64_t key);  // std::out_of_range for a negative size

    // 0 <= position < size()
    int64_t operator()(int64_t position) const;
    int64_t size() const { return static_cast<int64_t>(size_); }

  private:
    static constexpr int kRounds = 6;

    uint64_t network(uint64_t value) const;

    uint64_t size_;
    unsigned right_bits_;
    uint64_t left_mask_, right_mask_;
    std::array<uint64_t, kRounds> round_keys_;
};

// The numbers [0, n) in an order drawn from the key, one at a time (Fisher-Yates): for few of them, which are held.
class KeyedShuffle {
  public:
    void start(uint64_t key, int64_t n);
    // The next number; n times at most.
    int32_t next();

  private:
    uint64_t key_ = 0;
    size_t drawn_ = 0;
    std::vector<int32_t> order_;  // those drawn, then those left
};

}  // namespace mindllm
