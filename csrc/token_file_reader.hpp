// Reads Megatron token files (.bin and .idx) through read-only memory maps.
//
// Opening checks either everything that the index says, or in O(1) what its ends say: the header, the sizes of both
// files, the first entry and the last. What is read later from an index that was not checked is checked then, entry by
// entry, so that a damaged one is an error and never a read outside the maps.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "files.hpp"
#include "token_format.hpp"

namespace mindllm {

// A token id outside a vocabulary, and where it stands.
struct StrayToken {
    int64_t document;
    int64_t position;  // in the document
    int64_t id;
};

// The tokens of a file are one stream, numbered from 0; documents are stretches of it, and may hold several of
// Megatron's sequences. Immutable, so safe to share among threads. Keeps nothing in memory but the two maps.
class TokenFileReader {
  public:
    // Throws IoError for a file that cannot be opened, FormatError for one that is damaged; both name the file.
    // Without `thorough` only the ends of the index are checked.
    explicit TokenFileReader(const std::string& prefix, bool thorough = true);

    // Checks every entry of the index, read from the file and not through the map. Throws FormatError.
    void check_index() const;

    int64_t documents() const { return documents_; }
    int64_t tokens() const { return tokens_; }
    const TokenTypeInfo& type() const { return type_; }
    const std::string& prefix() const { return prefix_; }

    // The place in the stream where document `document` starts, 0 <= document <= documents(); std::out_of_range else.
    // FormatError for an entry that lies outside the stream.
    int64_t document_start(int64_t document) const;
    // Writes the lengths in tokens of documents [start, end) to `lengths`. FormatError for one below 0.
    void document_lengths(int64_t start, int64_t end, int64_t* lengths) const;

    // The address of a token of the stream, aligned for its type, nullptr in an empty file.
    const unsigned char* address(int64_t token) const;
    // Copies bytes of the .bin, read from the file: one that has become shorter is a FormatError, where the map would
    // end the process. std::out_of_range for a range outside the file.
    void read_data(void* target, int64_t bytes, int64_t offset) const;
    // Throws std::out_of_range unless 0 <= start and start + count <= tokens().
    void require_range(int64_t start, int64_t count) const;

    // Copies `n` ranges of the stream back to back to `out`, which has room for exactly `room` items: the counts must
    // add up to it. Everything is checked before anything is copied, but for int64 tokens beyond int32 (FormatError).
    template <typename T>
    void gather(const int64_t* starts, const int64_t* counts, int64_t n, T* out, int64_t room) const;

    // The largest id, -1 in an empty file.
    int64_t max_token() const;
    // The first id below 0 or at least `vocab_size`.
    std::optional<StrayToken> find_stray(int64_t vocab_size) const;
    // The document that holds a token, 0 <= token < tokens(): the last to start at or before it, since empty documents
    // share their start. Reads the file and not the map.
    int64_t document_of(int64_t token) const;

  private:
    void read_header();
    int64_t check_ends() const;
    void check_documents() const;
    void check_offsets() const;
    void check_data_size(int64_t expected_bytes) const;
    template <typename OffsetOf>
    int64_t start_of(int64_t document, int64_t first, OffsetOf&& offset_of) const;
    [[noreturn]] void refuse_documents_end(int64_t end) const;
    [[noreturn]] void refuse_offset(int64_t sequence, int64_t offset, const std::string& why) const;

    // An entry of a table of the index, read from the file.
    template <typename T>
    T entry(const unsigned char* table, uint64_t number) const;
    // Calls `visit(first, entries, n)` for blocks of `count` entries of type T of the index, read from the file.
    template <typename T, typename Visit>
    void visit_entries(const unsigned char* table, int64_t count, Visit&& visit) const;

    int64_t sequence_offset(int64_t sequence) const { return load<int64_t>(offsets_ + 8 * sequence); }
    int64_t first_sequence(int64_t document) const { return load<int64_t>(starts_ + 8 * document); }

    const std::string prefix_;
    const MappedFile index_;
    const MappedFile data_;
    TokenTypeInfo type_ = kTokenTypes[0];
    int64_t sequences_ = 0;
    int64_t documents_ = 0;
    int64_t tokens_ = 0;
    const unsigned char* lengths_ = nullptr;  // int32[sequences], unaligned
    const unsigned char* offsets_ = nullptr;  // int64[sequences], unaligned
    const unsigned char* starts_ = nullptr;   // int64[documents + 1], unaligned
};

}  // namespace mindllm
