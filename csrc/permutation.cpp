// Keyed permutations: a Feistel network with cycle walking for large sizes, a keyed Fisher-Yates shuffle for small.
#include "permutation.hpp"

#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

namespace mindllm {

namespace {

constexpr uint64_t kIncrement = 0x9E3779B97F4A7C15;  // splitmix64's

}  // namespace

uint64_t mix(uint64_t value) {
    value += kIncrement;
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB;
    return value ^ (value >> 31);
}

uint64_t derive_key(std::initializer_list<uint64_t> parts) {
    uint64_t key = 0;
    for (const uint64_t part : parts) key = mix(key ^ part);
    return key;
}

KeyedPermutation::KeyedPermutation(int64_t size, uint64_t key) : size_(static_cast<uint64_t>(size)) {
    if (size < 0) throw std::out_of_range("a permutation of " + std::to_string(size) + " positions");
    unsigned bits = 2;
    while (bits < 63 && (uint64_t{1} << bits) < size_) ++bits;
    right_bits_ = bits / 2;
    left_mask_ = (uint64_t{1} << (bits - right_bits_)) - 1;
    right_mask_ = (uint64_t{1} << right_bits_) - 1;
    for (uint64_t round = 0; round < kRounds; ++round) round_keys_[round] = derive_key({key, round});
}

int64_t KeyedPermutation::operator()(int64_t position) const {
    uint64_t place = static_cast<uint64_t>(position);
    do place = network(place);
    while (place >= size_);
    return static_cast<int64_t>(place);
}

uint64_t KeyedPermutation::network(uint64_t value) const {
    uint64_t left = value >> right_bits_, right = value & right_mask_;
    for (int round = 0; round < kRounds; round += 2) {
        left ^= mix(right ^ round_keys_[round]) & left_mask_;
        right ^= mix(left ^ round_keys_[round + 1]) & right_mask_;
    }
    return (left << right_bits_) | right;
}

void KeyedShuffle::start(uint64_t key, int64_t n) {
    key_ = key;
    drawn_ = 0;
    order_.resize(static_cast<size_t>(n));
    std::iota(order_.begin(), order_.end(), 0);
}

int32_t KeyedShuffle::next() {
    // The high half of the product is uniform over the places that are left.
    const auto product = static_cast<unsigned __int128>(mix(key_ + drawn_)) * (order_.size() - drawn_);
    std::swap(order_[drawn_], order_[drawn_ + static_cast<size_t>(product >> 64)]);
    return order_[drawn_++];
}

}  // namespace mindllm
