// Which documents belong together: a union-find over all documents of a corpus, whose roots are the earliest of each set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "external_sort.hpp"

namespace mindllm {

// Four bytes a document (eight from 2^32 on), in memory while that is enough and otherwise in a temporary file that is
// mapped. Not thread-safe.
class DocumentForest {
  public:
    // Throws IoError.
    DocumentForest(uint64_t documents, size_t memory_bytes, const std::string& folder);
    ~DocumentForest();
    DocumentForest(const DocumentForest&) = delete;
    DocumentForest& operator=(const DocumentForest&) = delete;

    // The earliest document of the set.
    uint64_t root(uint64_t document) {
        while (const uint64_t step = step_of(document)) {
            const uint64_t parent = document - step, next = step_of(parent);
            if (next != 0) set_step(document, step + next);  // shortens the path for those who come later
            document = parent;
        }
        return document;
    }
    void unite(uint64_t document, uint64_t other);

  private:
    uint64_t step_of(uint64_t document) const {
        return wide_ ? static_cast<const uint64_t*>(steps_)[document] : static_cast<const uint32_t*>(steps_)[document];
    }
    void set_step(uint64_t document, uint64_t step) {
        if (wide_) {
            static_cast<uint64_t*>(steps_)[document] = step;
        } else {
            static_cast<uint32_t*>(steps_)[document] = static_cast<uint32_t>(step);
        }
    }

    const bool wide_;
    const uint64_t bytes_;
    void* steps_ = nullptr;  // how far before a document its parent lies; 0: it is a root
    std::unique_ptr<TemporaryFile> file_;
};

}  // namespace mindllm
