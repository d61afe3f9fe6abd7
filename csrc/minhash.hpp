// MinHash: of each of k hash functions the least value that it takes on a text's shingles. The share in which two texts
// agree estimates the Jaccard similarity of their sets of shingles (Broder 1997).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace mindllm {

class MinHasher {
  public:
    explicit MinHasher(size_t hashes);
    size_t hashes() const { return factors_.size(); }
    // Writes `hashes()` values. Shingles are of n units (shingles.hpp); a text without units has itself as its shingle.
    void sign(std::string_view text, size_t n, uint32_t* values) const;

  private:
    std::vector<uint32_t> factors_, masks_;  // function i: (x ^ masks_[i]) * factors_[i]
};

}  // namespace mindllm
