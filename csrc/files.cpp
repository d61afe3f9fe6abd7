// Staged output files and read-only maps over POSIX calls; every failure becomes an IoError naming the file.
#include "files.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "errors.hpp"

namespace mindllm {

namespace {

constexpr size_t kBufferBytes = size_t{1} << 20;

}  // namespace

StagedFile::StagedFile(std::string path) : path_(std::move(path)), staged_path_(path_ + ".tmp"), owner_(::getpid()) {
    descriptor_ = ::open(staged_path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor_ < 0) throw IoError(errno, staged_path_);
    buffer_.reserve(kBufferBytes);
}

StagedFile::~StagedFile() {
    ::close(descriptor_);
    if (!committed_ && ::getpid() == owner_) ::unlink(staged_path_.c_str());
}

void StagedFile::write(const void* data, size_t bytes) {
    const auto* source = static_cast<const unsigned char*>(data);
    if (buffer_.size() + bytes > kBufferBytes) flush();
    if (bytes >= kBufferBytes) {
        write_through(source, bytes);
    } else {
        buffer_.insert(buffer_.end(), source, source + bytes);
    }
}

void StagedFile::flush() {
    write_through(buffer_.data(), buffer_.size());
    buffer_.clear();
}

void StagedFile::write_through(const unsigned char* data, size_t bytes) {
    while (bytes > 0) {
        const ssize_t written = ::write(descriptor_, data, bytes);
        if (written < 0) {
            if (errno == EINTR) continue;
            throw IoError(errno, staged_path_);
        }
        data += written;
        bytes -= static_cast<size_t>(written);
    }
}

void StagedFile::overwrite(const void* data, size_t bytes, int64_t offset) {
    const auto* source = static_cast<const unsigned char*>(data);
    while (bytes > 0) {
        const ssize_t written = ::pwrite(descriptor_, source, bytes, offset);
        if (written < 0) {
            if (errno == EINTR) continue;
            throw IoError(errno, staged_path_);
        }
        source += written;
        offset += written;
        bytes -= static_cast<size_t>(written);
    }
}

void StagedFile::read_back(void* data, size_t bytes, int64_t offset) {
    auto* target = static_cast<unsigned char*>(data);
    while (bytes > 0) {
        const ssize_t got = ::pread(descriptor_, target, bytes, offset);
        if (got < 0) {
            if (errno == EINTR) continue;
            throw IoError(errno, staged_path_);
        }
        if (got == 0) throw IoError(EIO, staged_path_);  // someone else has shortened it
        target += got;
        offset += got;
        bytes -= static_cast<size_t>(got);
    }
}

void StagedFile::sync() {
    flush();
    if (::fsync(descriptor_) != 0) throw IoError(errno, staged_path_);
}

void StagedFile::commit() {
    if (::rename(staged_path_.c_str(), path_.c_str()) != 0) throw IoError(errno, path_);
    committed_ = true;
}

void remove_file(const std::string& path) {
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) throw IoError(errno, path);
}

void sync_folder_of(const std::string& path) {
    const size_t slash = path.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return;  // a folder may be writable and yet not readable
    ::fsync(descriptor);         // some network file systems refuse it
    ::close(descriptor);
}

MappedFile::MappedFile(std::string path) : path_(std::move(path)) {
    descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // never wait for a pipe's writer
    if (descriptor_ < 0) throw IoError(errno, path_);
    try {
        map();
    } catch (...) {
        ::close(descriptor_);
        throw;
    }
}

void MappedFile::map() {
    struct stat status{};
    if (::fstat(descriptor_, &status) != 0) throw IoError(errno, path_);
    if (!S_ISREG(status.st_mode)) throw FormatError(path_, "not a regular file");
    bytes_ = static_cast<uint64_t>(status.st_size);
    if (bytes_ == 0) return;
    void* address = ::mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, descriptor_, 0);
    if (address == MAP_FAILED) throw IoError(errno, path_);
    data_ = static_cast<const unsigned char*>(address);
}

MappedFile::~MappedFile() {
    if (data_ != nullptr) ::munmap(const_cast<unsigned char*>(data_), bytes_);
    ::close(descriptor_);
}

void MappedFile::read(void* target, size_t bytes, uint64_t offset) const {
    auto* out = static_cast<unsigned char*>(target);
    while (bytes > 0) {
        const ssize_t got = ::pread(descriptor_, out, bytes, static_cast<off_t>(offset));
        if (got < 0) {
            if (errno == EINTR) continue;
            throw IoError(errno, path_);
        }
        if (got == 0) {
            throw FormatError(path_, "cut short while it was read: it ended at byte " + std::to_string(offset) +
                                         ", and had " + std::to_string(bytes_) + " when it was opened");
        }
        out += got;
        offset += static_cast<uint64_t>(got);
        bytes -= static_cast<size_t>(got);
    }
}

}  // namespace mindllm
