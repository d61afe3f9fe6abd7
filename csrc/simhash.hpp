// SimHash: 64 bits of a text, few of which differ where two texts nearly agree (Charikar 2002; Manku, Jain and Das Sarma
// 2007, who take pages as near-duplicates at a distance of up to 3).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace mindllm {

// Bit i is what bit i of the hashes of shingles is for the most part, where a shingle that occurs k times has the weight
// 1 + floor(log2 k), 8 at most: weighed by k itself, the few that a site repeats on all its pages decide alone. Of a text
// of fewer than `shortest` shingles it is a hash of all of it, normalised: a handful of shingles decides too little, and
// verses of one form would come out alike. Shingles are of n units (shingles.hpp).
uint64_t simhash(std::string_view text, size_t n, uint64_t shortest);

}  // namespace mindllm
