// The files of signatures that near-duplicates are searched in: one record for each document, nothing else.
//
//   SimHash   u64 signature            u64 hash of the text   u32 check
//   MinHash   u32 values[hashes]       u64 hash of the text   u32 check
//
// in the machine's (little-endian) order. The hash of the text tells copies from near-copies. The check is a hash of the
// rest and of the settings, so that damage and files signed with other settings are found.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "files.hpp"

namespace mindllm {

constexpr size_t RECORD_TAIL = 12;  // bytes behind the signature

// The record of a text's signature. `settings`: a number for them.
std::string signature_record(std::string_view signature, std::string_view text, uint64_t settings);

class SignatureFiles {
  public:
    // Throws IoError, and FormatError for a file that is not a whole number of records.
    SignatureFiles(std::vector<std::string> paths, size_t signature_bytes, uint64_t settings);

    size_t files() const { return paths_.size(); }
    uint64_t documents() const { return first_.back(); }
    size_t record_bytes() const { return record_bytes_; }
    uint64_t first(size_t file) const { return first_[file]; }  // number of its first document among all
    size_t file_of(uint64_t document) const;

    // Calls `take(document, const char* record)` for the documents of a file, or of all, in order. FormatError for a
    // record that does not pass its check. `take` must not keep the pointer.
    template <typename Take>
    void read_file(size_t file, Take take) const;
    template <typename Take>
    void read_all(Take take) const {
        for (size_t file = 0; file < files(); ++file) read_file(file, take);
    }
    // Copies any one record.
    void read_record(uint64_t document, char* record) const;

    uint64_t text_hash(const char* record) const;

  private:
    void check(size_t file, uint64_t ordinal, const char* record) const;
    const MappedFile& opened(size_t file) const;

    const std::vector<std::string> paths_;
    const size_t signature_bytes_, record_bytes_;
    const uint64_t settings_;
    std::vector<uint64_t> first_;  // and the number of all documents at the end
    struct Opened {
        size_t file = SIZE_MAX;
        std::unique_ptr<MappedFile> map;
    };
    mutable std::vector<Opened> opened_;  // a few, by the last digits of their number: files can be many
};

template <typename Take>
void SignatureFiles::read_file(size_t file, Take take) const {
    constexpr uint64_t AT_ONCE = 1024;
    const uint64_t records = first_[file + 1] - first_[file];
    std::vector<char> buffer(AT_ONCE * record_bytes_);
    for (uint64_t start = 0; start < records; start += AT_ONCE) {
        const uint64_t count = records - start < AT_ONCE ? records - start : AT_ONCE;
        opened(file).read(buffer.data(), count * record_bytes_, start * record_bytes_);
        for (uint64_t i = 0; i < count; ++i) {
            const char* record = buffer.data() + i * record_bytes_;
            check(file, start + i, record);
            take(first_[file] + start + i, record);
        }
    }
}

}  // namespace mindllm
