// Records of signatures: made, checked, and found among all files.
#include "signature_files.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "errors.hpp"
#include "shingles.hpp"

namespace mindllm {

namespace {

constexpr size_t OPEN_FILES = 64;

uint32_t check_of(std::string_view rest, uint64_t settings) {
    return static_cast<uint32_t>(mix_bits(hash_bytes(rest) ^ settings));
}

}  // namespace

std::string signature_record(std::string_view signature, std::string_view text, uint64_t settings) {
    std::string record(signature);
    const uint64_t text_hash = hash_bytes(text);
    record.append(reinterpret_cast<const char*>(&text_hash), sizeof text_hash);
    const uint32_t check = check_of(record, settings);
    record.append(reinterpret_cast<const char*>(&check), sizeof check);
    return record;
}

SignatureFiles::SignatureFiles(std::vector<std::string> paths, size_t signature_bytes, uint64_t settings)
    : paths_(std::move(paths)),
      signature_bytes_(signature_bytes),
      record_bytes_(signature_bytes + RECORD_TAIL),
      settings_(settings),
      opened_(OPEN_FILES) {
    if (paths_.size() > UINT32_MAX) throw FormatError("over 4294967295 files of signatures");
    first_.push_back(0);
    for (const std::string& path : paths_) {
        struct stat status{};
        if (::stat(path.c_str(), &status) != 0) throw IoError(errno, path);
        if (!S_ISREG(status.st_mode)) throw FormatError(path, "not a regular file");
        const auto bytes = static_cast<uint64_t>(status.st_size);
        if (bytes % record_bytes_ != 0) {
            throw FormatError(path, "cut short, or signed with other settings: " + std::to_string(bytes) +
                                        " bytes are not a whole number of records of " + std::to_string(record_bytes_));
        }
        if (bytes / record_bytes_ > uint64_t{UINT32_MAX} + 1) throw FormatError(path, "has over 4294967296 records");
        first_.push_back(first_.back() + bytes / record_bytes_);
    }
}

size_t SignatureFiles::file_of(uint64_t document) const {
    return static_cast<size_t>(std::upper_bound(first_.begin(), first_.end(), document) - first_.begin()) - 1;
}

void SignatureFiles::read_record(uint64_t document, char* record) const {
    const size_t file = file_of(document);
    const uint64_t ordinal = document - first_[file];
    opened(file).read(record, record_bytes_, ordinal * record_bytes_);
    check(file, ordinal, record);
}

uint64_t SignatureFiles::text_hash(const char* record) const {
    uint64_t hash;
    std::memcpy(&hash, record + signature_bytes_, sizeof hash);
    return hash;
}

void SignatureFiles::check(size_t file, uint64_t ordinal, const char* record) const {
    uint32_t stored;
    std::memcpy(&stored, record + signature_bytes_ + 8, sizeof stored);
    if (stored == check_of({record, signature_bytes_ + 8}, settings_)) return;
    throw FormatError(paths_[file], "record " + std::to_string(ordinal) + " is damaged, or signed with other settings");
}

const MappedFile& SignatureFiles::opened(size_t file) const {
    Opened& place = opened_[file % OPEN_FILES];
    if (place.file != file) {
        place.file = SIZE_MAX;
        place.map = std::make_unique<MappedFile>(paths_[file]);
        place.file = file;
    }
    return *place.map;
}

}  // namespace mindllm
