// The bytes of a .bin or .idx on the training path, from the file itself or from a folder that holds some of its chunks
// (mindllm_engine/data/remote.py). A file that is cut short while it is read is an error, and not the end of the process.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace mindllm {

// A file open for reading. Throws IoError if it cannot be opened.
class ReadDescriptor {
  public:
    explicit ReadDescriptor(const std::string& path);
    ~ReadDescriptor();
    ReadDescriptor(const ReadDescriptor&) = delete;
    ReadDescriptor& operator=(const ReadDescriptor&) = delete;

    // `path` is for the errors: IoError, or FormatError if the file ends before `offset + bytes`.
    void read(int64_t offset, int64_t bytes, void* out, const std::string& path) const;
    struct stat status(const std::string& path) const;
    int number() const { return descriptor_; }

  private:
    int descriptor_ = -1;
};

// Bytes numbered from 0. Immutable from outside and safe to share among threads.
class TokenBytes {
  public:
    virtual ~TokenBytes() = default;
    TokenBytes(const TokenBytes&) = delete;
    TokenBytes& operator=(const TokenBytes&) = delete;

    // Copies bytes [offset, offset + bytes) to `out`. Throws std::out_of_range for a range that is not inside,
    // FormatError for a file that has been cut short, IoError, and what the kind of source adds.
    virtual void read(int64_t offset, int64_t bytes, void* out) const = 0;

    // Starts to bring a range that will be read soon into the cache of the processor, where that is possible.
    virtual void prefetch(int64_t, int64_t) const {}

    // Throws FormatError if what has been read may have been beyond the end of a file cut short meanwhile.
    virtual void check_end() const {}

    int64_t bytes() const { return bytes_; }
    const std::string& path() const { return path_; }

  protected:
    explicit TokenBytes(std::string path, int64_t bytes = 0) : path_(std::move(path)), bytes_(bytes) {}
    void require_range(int64_t offset, int64_t bytes) const;

    const std::string path_;
    int64_t bytes_;
};

// A file, mapped, so that what a sample is made of can be on its way from memory all at once; pread would wait for one
// piece after the other.
// Opening throws IoError, or FormatError if it is no regular file.
class LocalBytes : public TokenBytes {
  public:
    explicit LocalBytes(std::string path);
    ~LocalBytes() override;
    void read(int64_t offset, int64_t bytes, void* out) const override;
    void prefetch(int64_t offset, int64_t bytes) const override;
    void check_end() const override;
    // As `read`, by pread: for large ranges one after the other, which the system then reads ahead of need.
    void read_in_order(int64_t offset, int64_t bytes, void* out) const;

  private:
    const ReadDescriptor file_;
    const unsigned char* map_ = nullptr;
};

// The chunks `<folder>/0`, `<folder>/1`, ... of `chunk_bytes` each (the last may be shorter), of which any may be absent
// and may come and go: `read` throws MissingChunk for one that is absent or has not its full size.
class ChunkFolderBytes : public TokenBytes {
  public:
    // FormatError unless chunk_bytes > 0 and total_bytes >= 0.
    ChunkFolderBytes(std::string folder, int64_t chunk_bytes, int64_t total_bytes);
    void read(int64_t offset, int64_t bytes, void* out) const override;

  private:
    using Descriptor = std::shared_ptr<const ReadDescriptor>;
    Descriptor open_chunk(int64_t chunk) const;
    Descriptor find_open(int64_t chunk) const;
    void keep_open(int64_t chunk, Descriptor descriptor) const;
    std::string chunk_path(int64_t chunk) const;

    const int64_t chunk_bytes_;
    mutable std::mutex mutex_;
    // The chunks used last, the latest at the end. One that is deleted meanwhile stays readable until it drops out.
    mutable std::vector<std::pair<int64_t, Descriptor>> open_;
};

}  // namespace mindllm
