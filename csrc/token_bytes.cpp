// A mapped file behind a guard, and pread from a folder of chunks, each with all that can go wrong.
#include "token_bytes.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <stdexcept>

#include "bus_guard.hpp"
#include "errors.hpp"

namespace mindllm {

namespace {

constexpr int64_t kCacheLine = 64;
constexpr int64_t kReadAhead = 4 << 20;  // more than systems do by themselves; faster disks have many requests at once
constexpr size_t kOpenChunks = 16;  // of each source; enough for the threads of one micro-batch

std::string text(int64_t number) { return std::to_string(number); }

[[noreturn]] void refuse_end(const std::string& path, int64_t end, int64_t missing) {
    throw FormatError(path, "cut short while it was read: it ends at byte " + text(end) + ", " + text(missing) +
                                " bytes before the end of what its index names");
}

}  // namespace

ReadDescriptor::ReadDescriptor(const std::string& path) {
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // never wait for a pipe's writer
    if (descriptor_ < 0) throw IoError(errno, path);
}

ReadDescriptor::~ReadDescriptor() { ::close(descriptor_); }

void ReadDescriptor::read(int64_t offset, int64_t bytes, void* out, const std::string& path) const {
    auto* target = static_cast<unsigned char*>(out);
    while (bytes > 0) {
        const ssize_t got = ::pread(descriptor_, target, static_cast<size_t>(bytes), offset);
        if (got < 0) {
            if (errno == EINTR) continue;
            throw IoError(errno, path);
        }
        if (got == 0) refuse_end(path, offset, bytes);
        target += got;
        offset += got;
        bytes -= got;
    }
}

struct stat ReadDescriptor::status(const std::string& path) const {
    struct stat status{};
    if (::fstat(descriptor_, &status) != 0) throw IoError(errno, path);
    return status;
}

void TokenBytes::require_range(int64_t offset, int64_t bytes) const {
    if (offset < 0 || bytes < 0 || offset > bytes_ || bytes > bytes_ - offset) {
        throw std::out_of_range(path_ + ": no range of " + text(bytes) + " bytes from " + text(offset) + " among " +
                                text(bytes_));
    }
}

LocalBytes::LocalBytes(std::string path) : TokenBytes(std::move(path)), file_(path_) {
    const struct stat status = file_.status(path_);
    if (!S_ISREG(status.st_mode)) throw FormatError(path_, "not a regular file");
    bytes_ = status.st_size;
    if (bytes_ == 0) return;
    void* address = ::mmap(nullptr, static_cast<size_t>(bytes_), PROT_READ, MAP_SHARED, file_.number(), 0);
    if (address == MAP_FAILED) throw IoError(errno, path_);
    // Samples lie here and there: what is around one would be read from the disk for nothing.
    ::madvise(address, static_cast<size_t>(bytes_), MADV_RANDOM);
    map_ = static_cast<const unsigned char*>(address);
    install_bus_guard();
}

LocalBytes::~LocalBytes() {
    if (map_ != nullptr) ::munmap(const_cast<unsigned char*>(map_), static_cast<size_t>(bytes_));
}

void LocalBytes::read(int64_t offset, int64_t bytes, void* out) const {
    require_range(offset, bytes);
    if (bytes == 0 || copy_guarded(out, map_ + offset, static_cast<size_t>(bytes))) return;
    check_end();
    throw IoError(EIO, path_);
}

void LocalBytes::read_in_order(int64_t offset, int64_t bytes, void* out) const {
    require_range(offset, bytes);
    const int64_t window = (offset + bytes) / kReadAhead;
    if (offset / kReadAhead != window) {
        ::posix_fadvise(file_.number(), (window + 1) * kReadAhead, kReadAhead, POSIX_FADV_WILLNEED);
    }
    file_.read(offset, bytes, out, path_);
}

void LocalBytes::prefetch(int64_t offset, int64_t bytes) const {
    require_range(offset, bytes);
    for (int64_t line = 0; line < bytes; line += kCacheLine) __builtin_prefetch(map_ + offset + line);
}

// Within the last page of a file there is no fault: what was beyond its end reads as zeros.
void LocalBytes::check_end() const {
    const int64_t end = file_.status(path_).st_size;
    if (end < bytes_) refuse_end(path_, end, bytes_ - end);
}

ChunkFolderBytes::ChunkFolderBytes(std::string folder, int64_t chunk_bytes, int64_t total_bytes)
    : TokenBytes(std::move(folder), total_bytes), chunk_bytes_(chunk_bytes) {
    if (chunk_bytes <= 0 || total_bytes < 0) {
        throw FormatError(path_, "no " + text(total_bytes) + " bytes in chunks of " + text(chunk_bytes));
    }
}

void ChunkFolderBytes::read(int64_t offset, int64_t bytes, void* out) const {
    require_range(offset, bytes);
    auto* target = static_cast<unsigned char*>(out);
    while (bytes > 0) {
        const int64_t chunk = offset / chunk_bytes_, place = offset % chunk_bytes_;
        const int64_t piece = std::min(bytes, chunk_bytes_ - place);
        open_chunk(chunk)->read(place, piece, target, chunk_path(chunk));
        target += piece;
        offset += piece;
        bytes -= piece;
    }
}

ChunkFolderBytes::Descriptor ChunkFolderBytes::open_chunk(int64_t chunk) const {
    if (Descriptor known = find_open(chunk)) return known;
    const std::string path = chunk_path(chunk);
    try {
        Descriptor descriptor = std::make_shared<const ReadDescriptor>(path);
        const struct stat status = descriptor->status(path);
        const int64_t expected = std::min(chunk_bytes_, bytes_ - chunk * chunk_bytes_);
        if (!S_ISREG(status.st_mode) || status.st_size != expected) throw MissingChunk(path_, chunk);
        keep_open(chunk, descriptor);
        return descriptor;
    } catch (const IoError& error) {
        if (error.code == ENOENT) throw MissingChunk(path_, chunk);
        throw;
    }
}

ChunkFolderBytes::Descriptor ChunkFolderBytes::find_open(int64_t chunk) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = std::find_if(open_.begin(), open_.end(), [&](const auto& entry) { return entry.first == chunk; });
    if (found == open_.end()) return nullptr;
    std::rotate(found, found + 1, open_.end());
    return open_.back().second;
}

void ChunkFolderBytes::keep_open(int64_t chunk, Descriptor descriptor) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (open_.size() == kOpenChunks) open_.erase(open_.begin());
    open_.emplace_back(chunk, std::move(descriptor));  // a second one, where threads raced, does no harm
}

std::string ChunkFolderBytes::chunk_path(int64_t chunk) const { return path_ + "/" + text(chunk); }

}  // namespace mindllm
