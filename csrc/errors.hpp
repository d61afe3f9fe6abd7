// The errors of the native code: a file whose content is wrong, a system call that failed, a chunk not fetched yet.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <system_error>

namespace mindllm {

// The content of a file, or data given to be written, is wrong. Python sees ValueError.
class FormatError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
    FormatError(const std::string& path, const std::string& what) : std::runtime_error(path + ": " + what) {}
};

// A system call on `path` failed with `code` (an errno). Python sees the OSError of that errno, with the file name.
class IoError : public std::runtime_error {
  public:
    IoError(int code, std::string path)
        : std::runtime_error(path + ": " + std::generic_category().message(code)), code(code), path(std::move(path)) {}

    const int code;
    const std::string path;
};

// A chunk of a remote .bin is not, or no longer, in the local folder: fetch it and ask again. Python sees
// MissingChunkError, with the attributes `folder` and `chunk`.
class MissingChunk : public std::runtime_error {
  public:
    MissingChunk(std::string folder, int64_t chunk)
        : std::runtime_error(folder + ": chunk " + std::to_string(chunk) + " is not there"),
          folder(std::move(folder)),
          chunk(chunk) {}

    const std::string folder;
    const int64_t chunk;
};

}  // namespace mindllm
