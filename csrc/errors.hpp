// The two errors of the native code: a file whose content is wrong, and a system call that failed.
#pragma once

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

}  // namespace mindllm
