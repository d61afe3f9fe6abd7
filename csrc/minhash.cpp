// The k functions, on 32 bits of a shingle's hash, for a batch of shingles at a time.
#include "minhash.hpp"

#include <algorithm>
#include <limits>

#include "shingles.hpp"
#include "vectorised.hpp"

namespace mindllm {

namespace {

MINDLLM_VECTORISED
void lower(const uint32_t* shingles, size_t count, const uint32_t* factors, const uint32_t* masks, size_t hashes,
           uint32_t* values) {
    for (size_t i = 0; i < hashes; ++i) {
        const uint32_t factor = factors[i], mask = masks[i];
        uint32_t least = values[i];
        for (size_t j = 0; j < count; ++j) {
            const uint32_t value = (shingles[j] ^ mask) * factor;
            least = value < least ? value : least;
        }
        values[i] = least;
    }
}

}  // namespace

MinHasher::MinHasher(size_t hashes) {
    for (size_t i = 0; i < hashes; ++i) {
        const uint64_t bits = mix_bits(i + 1);
        factors_.push_back(static_cast<uint32_t>(bits) | 1);
        masks_.push_back(static_cast<uint32_t>(bits >> 32));
    }
}

void MinHasher::sign(std::string_view text, size_t n, uint32_t* values) const {
    std::fill_n(values, hashes(), std::numeric_limits<uint32_t>::max());
    std::vector<uint32_t> narrow;
    const auto take = [&](const uint64_t* shingles, size_t count) {
        narrow.assign(shingles, shingles + count);  // the lower halves
        lower(narrow.data(), count, factors_.data(), masks_.data(), hashes(), values);
    };
    if (cut_into_shingles(text, n, take).units > 0) return;
    const uint64_t whole = hash_bytes(text);
    take(&whole, 1);
}

}  // namespace mindllm
