// All pairs of signatures that differ in few bits, without comparing all pairs: of d + 1 blocks of bits, two signatures
// that differ in d bits agree in one at least. So, for each block: sort by it, and search among those that agree in it,
// in the same way by blocks of the bits in which those still differ, until so few are left that all pairs are compared.
// No pair is missed. (Manku, Jain and Das Sarma 2007 keep a permuted table for each choice of blocks instead.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "document_forest.hpp"
#include "external_sort.hpp"

namespace mindllm {

class HammingSearch {
  public:
    // Pairs of a distance up to `distance` (0 to 7) are united in the forest. Temporary files go to `folder`.
    HammingSearch(int distance, DocumentForest& forest, std::string folder);

    // Distinct signatures in memory, in any order, which changes. `scratch` has room for as many.
    void search(Entry* entries, size_t count, Entry* scratch);
    // Distinct signatures on the disk. Throws IoError.
    void search(const EntryFile& entries, size_t memory_bytes);

  private:
    void compare_all(const Entry* entries, size_t count);
    bool all_united(const Entry* entries, size_t count);

    const int distance_;
    DocumentForest& forest_;
    const std::string folder_;
};

}  // namespace mindllm
