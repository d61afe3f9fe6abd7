// Files as the native code uses them: a staged output that appears only when complete, and a read-only map.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace mindllm {

// A file written to `<path>.tmp` and renamed to `path` by `commit`. Without a commit the destructor deletes it.
// Not thread-safe. Every method throws IoError.
class StagedFile {
  public:
    explicit StagedFile(std::string path);
    ~StagedFile();
    StagedFile(const StagedFile&) = delete;
    StagedFile& operator=(const StagedFile&) = delete;

    void write(const void* data, size_t bytes);
    void flush();
    // Both act on what has been flushed, and leave the end of the file where it is.
    void overwrite(const void* data, size_t bytes, int64_t offset);
    void read_back(void* data, size_t bytes, int64_t offset);

    void sync();    // to the disk
    void commit();  // rename; call after `sync`

    const std::string& path() const { return path_; }

  private:
    void write_through(const unsigned char* data, size_t bytes);

    const std::string path_;
    const std::string staged_path_;
    const pid_t owner_;  // a forked child must not delete its parent's file
    int descriptor_ = -1;
    bool committed_ = false;
    std::vector<unsigned char> buffer_;
};

// Deletes `path` if it exists.
void remove_file(const std::string& path);

// Makes the renames in the folder of `path` durable, where the file system can.
void sync_folder_of(const std::string& path);

// A whole file mapped read-only and private, and open. A file of no bytes gives `data() == nullptr`.
// A file that another process shortens while it is mapped kills whoever reads the map with SIGBUS, as with every memory
// map; `read` gives an error instead.
class MappedFile {
  public:
    // Throws IoError, or FormatError if `path` is no regular file.
    explicit MappedFile(std::string path);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    const unsigned char* data() const { return data_; }
    uint64_t bytes() const { return bytes_; }
    const std::string& path() const { return path_; }

    // Copies [offset, offset + bytes) of the file to `target`, by system calls. Throws IoError, and FormatError for a
    // file that has become shorter. Thread-safe.
    void read(void* target, size_t bytes, uint64_t offset) const;

  private:
    void map();

    const std::string path_;
    int descriptor_ = -1;
    const unsigned char* data_ = nullptr;
    uint64_t bytes_ = 0;
};

}  // namespace mindllm
