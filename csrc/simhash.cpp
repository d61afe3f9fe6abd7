// Counts the bits of hashes in planes: plane p holds bit p of 64 counters, so that a hash is added to all of them by a few
// operations on whole words.
#include "simhash.hpp"

#include <array>

#include "shingles.hpp"

namespace mindllm {

namespace {

constexpr int PLANES = 8;
constexpr size_t PLANES_HOLD = (size_t{1} << PLANES) - 1;

class BitCounts {
  public:
    void add(const uint64_t* hashes, size_t count) {
        for (size_t i = 0; i < count; ++i) {
            uint64_t carry = hashes[i];
            for (int plane = 0; carry != 0; ++plane) {
                const uint64_t sum = planes_[plane] ^ carry;
                carry &= planes_[plane];
                planes_[plane] = sum;
            }
            if (++in_planes_ == PLANES_HOLD) empty_planes();
        }
        total_ += count;
    }

    uint64_t majority() {
        empty_planes();
        uint64_t bits = 0;
        for (int bit = 0; bit < 64; ++bit) bits |= static_cast<uint64_t>(2 * counts_[bit] > total_) << bit;
        return bits;
    }

  private:
    void empty_planes() {
        for (int plane = 0; plane < PLANES; ++plane) {
            for (int bit = 0; bit < 64; ++bit) counts_[bit] += (planes_[plane] >> bit & 1) << plane;
            planes_[plane] = 0;
        }
        in_planes_ = 0;
    }

    std::array<uint64_t, PLANES> planes_{};
    std::array<uint64_t, 64> counts_{};
    size_t in_planes_ = 0;
    uint64_t total_ = 0;
};

}  // namespace

uint64_t simhash(std::string_view text, size_t n, uint64_t shortest) {
    BitCounts counts;
    const auto take = [&counts](const uint64_t* hashes, size_t count) { counts.add(hashes, count); };
    const ShingleCounts found = cut_into_shingles(text, n, take);
    if (found.units == 0) return hash_bytes(text);
    return found.shingles < shortest ? mix_bits(found.content) : counts.majority();
}

}  // namespace mindllm
