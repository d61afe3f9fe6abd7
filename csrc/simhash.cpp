// Counts the bits of hashes in planes: plane p holds bit p of 64 counters, so that a hash is added to all of them by a few
// operations on whole words. A shingle is added when it comes for the 1st, 2nd, 4th ... 128th time.
#include "simhash.hpp"

#include <array>
#include <vector>

#include "shingles.hpp"
#include "vectorised.hpp"

namespace mindllm {

namespace {

constexpr int PLANES = 8;
constexpr size_t PLANES_HOLD = (size_t{1} << PLANES) - 1;
constexpr size_t LEAST_SLOTS = 1 << 12, MOST_SLOTS = 1 << 22;
constexpr uint8_t COUNTED = 255;  // times at most

// How often shingles have come. Those that share a slot are counted together, so that some weigh less than they should:
// mostly the same ones in two similar texts. Of texts over 16 MB more do, and memory stays.
class Occurrences {
  public:
    explicit Occurrences(size_t text_bytes) {
        size_t slots = LEAST_SLOTS;
        while (slots < 4 * text_bytes && slots < MOST_SLOTS) slots *= 2;
        slots_.resize(slots);
    }
    // Whether it is the 1st, 2nd, 4th ... 128th time. Without branches, which nobody could foresee.
    bool count(uint64_t shingle) {
        uint8_t& times = slots_[shingle >> 32 & (slots_.size() - 1)];
        times = static_cast<uint8_t>(times + (times != COUNTED));
        return (times & (times - 1)) == 0;
    }

  private:
    std::vector<uint8_t> slots_;
};

MINDLLM_VECTORISED
void add_plane(uint64_t plane, int weight, uint64_t* counts) {
    for (int bit = 0; bit < 64; ++bit) counts[bit] += (plane >> bit & 1) << weight;
}

class BitCounts {
  public:
    // `hashes` has room for three more.
    void add(uint64_t* hashes, size_t count) {
        total_ += count;
        while (count % 4 != 0) hashes[count++] = 0;  // which adds nothing
        for (size_t i = 0; i < count; i += 4) add_four(hashes + i);
    }

    uint64_t majority() {
        empty_planes();
        uint64_t bits = 0;
        for (int bit = 0; bit < 64; ++bit) bits |= static_cast<uint64_t>(2 * counts_[bit] > total_) << bit;
        return bits;
    }

  private:
    // Adds two bits to each counter of a plane; the carry is for the next one.
    static uint64_t add_two(uint64_t& plane, uint64_t one, uint64_t other) {
        const uint64_t sum = plane ^ one, carry = (plane & one) | (sum & other);
        plane = sum ^ other;
        return carry;
    }

    void add_four(const uint64_t* hashes) {
        const uint64_t twos = add_two(planes_[0], hashes[0], hashes[1]);
        const uint64_t more_twos = add_two(planes_[0], hashes[2], hashes[3]);
        uint64_t carry = add_two(planes_[1], twos, more_twos);
        for (int plane = 2; plane < PLANES; ++plane) {
            const uint64_t sum = planes_[plane] ^ carry;
            carry &= planes_[plane];
            planes_[plane] = sum;
        }
        in_planes_ += 4;
        if (in_planes_ + 4 > PLANES_HOLD) empty_planes();
    }

    void empty_planes() {
        for (int plane = 0; plane < PLANES; ++plane) {
            if (planes_[plane] != 0) add_plane(planes_[plane], plane, counts_.data());
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
    Occurrences occurrences(text.size());
    std::array<uint64_t, SHINGLES_AT_ONCE + 3> counted;
    const auto take = [&](const uint64_t* hashes, size_t count) {
        size_t kept = 0;
        for (size_t i = 0; i < count; ++i) {
            counted[kept] = hashes[i];
            kept += occurrences.count(hashes[i]);
        }
        counts.add(counted.data(), kept);
    };
    const ShingleCounts found = cut_into_shingles(text, n, take);
    if (found.units == 0) return hash_bytes(text);
    return found.shingles < shortest ? mix_bits(found.content) : counts.majority();
}

}  // namespace mindllm
