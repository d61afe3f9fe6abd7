// Which documents belong together: a union-find over all documents of a corpus, whose roots are the earliest of each set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "external_sort.hpp"

namespace mindllm {

// Eight bytes a document, in memory while that is enough and otherwise in a temporary file that is mapped. Pages of
// which no document has been united cost nothing. Not thread-safe.
class DocumentForest {
  public:
    // Throws IoError.
    DocumentForest(uint64_t documents, size_t memory_bytes, const std::string& folder);
    ~DocumentForest();
    DocumentForest(const DocumentForest&) = delete;
    DocumentForest& operator=(const DocumentForest&) = delete;

    // The earliest document of the set.
    uint64_t root(uint64_t document) {
        while (steps_[document] != 0) {
            const uint64_t parent = document - steps_[document];
            if (steps_[parent] != 0) steps_[document] += steps_[parent];  // halves the path for those who come later
            document = parent;
        }
        return document;
    }
    void unite(uint64_t document, uint64_t other);

  private:
    uint64_t* steps_ = nullptr;  // how far before a document its parent lies; 0: it is a root
    const uint64_t bytes_;
    std::unique_ptr<TemporaryFile> file_;
};

}  // namespace mindllm
