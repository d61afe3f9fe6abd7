// The forest's memory, and uniting two sets.
#include "document_forest.hpp"

#include <sys/mman.h>

#include <cerrno>
#include <utility>

#include "errors.hpp"

namespace mindllm {

DocumentForest::DocumentForest(uint64_t documents, size_t memory_bytes, const std::string& folder)
    : wide_(documents > UINT32_MAX), bytes_(documents * (wide_ ? sizeof(uint64_t) : sizeof(uint32_t))) {
    if (bytes_ == 0) return;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, descriptor = -1;
    if (bytes_ > memory_bytes) {
        file_ = std::make_unique<TemporaryFile>(folder);
        file_->allocate(bytes_);
        flags = MAP_SHARED;
        descriptor = file_->descriptor();
    }
    void* address = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, flags, descriptor, 0);
    if (address == MAP_FAILED) throw IoError(errno, folder);
    steps_ = address;
}

DocumentForest::~DocumentForest() {
    if (steps_ != nullptr) ::munmap(steps_, bytes_);
}

void DocumentForest::unite(uint64_t document, uint64_t other) {
    uint64_t first = root(document), second = root(other);
    if (first == second) return;
    if (first > second) std::swap(first, second);
    set_step(second, second - first);
}

}  // namespace mindllm
