// Which documents of a corpus nearly equal an earlier one, by their signatures: pairs are found, checked and joined to
// clusters; of each the earliest document (by file, then by its place in it) stays, whatever its likeness to the others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "signature_files.hpp"

namespace mindllm {

// What is written of a document that has an earlier copy: <folder>/<number of its file>.duplicates holds these alone.
struct Duplicate {
    uint32_t ordinal;       // in its file
    uint32_t kept_file;     // the earliest document of its cluster
    uint32_t kept_ordinal;
    uint32_t distance;      // of their signatures, in bits or MinHash values; EXACT_COPY if the texts are equal
};
constexpr uint32_t EXACT_COPY = UINT32_MAX;

struct DuplicateCounts {
    uint64_t documents = 0, exact = 0, near = 0;
};

// Pairs of SimHash signatures (of 8 bytes) at a distance up to `distance`, every one of them. Memory is bounded by
// `memory_bytes` (64 KiB at least), beside a mapped file of four bytes a document where these are more than a quarter of
// that: pages that the system may take back. Temporary files go to `folder`. Throws IoError and FormatError.
DuplicateCounts find_simhash_duplicates(const SignatureFiles& signatures, int distance, const std::string& folder,
                                        size_t memory_bytes);

// Pairs of MinHash signatures that agree in one of `bands` runs of values (a band has all values but a rest divided by
// their number) and in `least_equal` values of all. Where over 256 unlike documents agree in a band, each is compared
// with the first 256 only. Memory as above, and one bit a document.
DuplicateCounts find_minhash_duplicates(const SignatureFiles& signatures, size_t hashes, size_t bands,
                                        size_t least_equal, const std::string& folder, size_t memory_bytes);

}  // namespace mindllm
