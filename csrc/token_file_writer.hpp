// Writes Megatron token files (.bin and .idx), to the byte as megatron-core's IndexedDatasetBuilder does.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "files.hpp"
#include "token_format.hpp"

namespace mindllm {

class TokenFileReader;

// Writes one .idx with one sequence for each document. The lengths go to the file as they come, where the format wants
// them, and `finish` derives the rest from there: the memory does not grow with the number of documents.
class IndexWriter {
  public:
    IndexWriter(std::string path, TokenTypeInfo type);

    // Throws FormatError for a length that is negative or does not fit int32; nothing is written then.
    void append(const int64_t* lengths, int64_t count);
    void finish();  // to the disk, still under the temporary name
    void commit() { file_.commit(); }

    int64_t documents() const { return documents_; }
    const std::string& path() const { return file_.path(); }

  private:
    void write_offsets();
    void write_document_starts();

    StagedFile file_;
    const TokenTypeInfo type_;
    int64_t documents_ = 0;
};

// Appends documents to `<prefix>.bin.tmp` and `<prefix>.idx.tmp`; `finalize` makes them durable and renames them, the
// .idx last. Files of the same name that exist stay untouched until then. A failed system call aborts. Thread-safe.
class TokenFileWriter {
  public:
    // `type` is "uint16" or "int32"; FormatError for any other.
    TokenFileWriter(const std::string& prefix, const std::string& type);

    // Appends `documents` documents of `lengths` tokens each, lying back to back in `tokens`. All or nothing:
    // FormatError, naming the value, for an id below 0 or above the type's maximum, or lengths that do not add up to
    // `count`.
    template <typename T>
    void append(const T* tokens, int64_t count, const int64_t* lengths, int64_t documents);

    // Appends every document of another token file of the same type. A failure part-way aborts.
    void append_file(const std::string& prefix);

    void finalize();
    void abort();

    int64_t documents() const { return documents_; }
    int64_t tokens() const { return tokens_; }
    const TokenTypeInfo& type() const { return type_; }

  private:
    template <typename T>
    void append_locked(const T* tokens, int64_t count, const int64_t* lengths, int64_t documents);
    template <typename T>
    void append_all(const TokenFileReader& other);
    template <typename T>
    void check_ids(const T* tokens, int64_t count, const int64_t* lengths, int64_t documents) const;
    template <typename T>
    void write_tokens(const T* tokens, int64_t count);
    void require_open() const;

    const std::string prefix_;
    const TokenTypeInfo type_;
    std::mutex mutex_;
    std::unique_ptr<StagedFile> data_;  // null once finalized or aborted
    std::unique_ptr<IndexWriter> index_;
    std::atomic<int64_t> documents_ = 0;  // atomic, to be read while another thread appends
    std::atomic<int64_t> tokens_ = 0;
};

// Writes the .idx alone, to `path` itself, for a .bin that exists or will: one sequence for each document.
void write_index(const std::string& path, const std::string& type, const int64_t* lengths, int64_t count);

}  // namespace mindllm
