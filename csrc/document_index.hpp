// The lengths of a token file's documents, read from its .idx as needed: only borders are kept.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "token_bytes.hpp"
#include "token_file_reader.hpp"

namespace mindllm {

// Groups of `group` neighbouring documents, of which it knows the borders, and reads the rest when it is asked. Immutable
// and thread-safe.
class DocumentIndex {
  public:
    // Reads the .idx at `path`, of the file that `reader` has open, once from its beginning to its end. FormatError if it
    // is damaged.
    DocumentIndex(std::string path, const TokenFileReader& reader, int64_t group);

    int64_t documents() const { return documents_; }
    int64_t tokens() const { return borders_.back(); }
    int64_t groups() const { return static_cast<int64_t>(borders_.size()) - 1; }
    const std::string& path() const { return index_.path(); }
    int64_t held_bytes() const { return static_cast<int64_t>(borders_.size() * sizeof(int64_t)); }

    int64_t first_document(int64_t group) const { return group * group_; }
    // Where a group starts in the stream of tokens; `groups()` gives the end of the last.
    int64_t border(int64_t group) const { return borders_[static_cast<size_t>(group)]; }
    int64_t group_tokens(int64_t group) const { return border(group + 1) - border(group); }
    // Where the documents of a group start in the stream, and at the end where the last of them ends. `starts` is
    // resized. FormatError if the file is damaged there, or is not what it was.
    void read_starts(int64_t group, std::vector<int64_t>& starts) const;
    // Starts to bring what read_starts will read into the cache of the processor.
    void prefetch(int64_t group) const;
    // The tokens of each document of a group, for one who goes through all groups in order: not by the map, whose pages
    // would stay in memory. `lengths` is resized. FormatError as read_starts.
    void read_lengths_in_order(int64_t group, std::vector<int64_t>& lengths) const;
    // Throws the FormatError for a file that is not what it was when it was opened.
    [[noreturn]] void refuse_change() const;

  private:
    // How LocalBytes reads: for a group here and there, or for all of them one after the other.
    using Read = void (LocalBytes::*)(int64_t offset, int64_t bytes, void* out) const;

    void read_lengths(Read read, int64_t first, int64_t count, std::vector<int64_t>& lengths) const;
    void read_lengths_of_sequences(Read read, int64_t first, int64_t count, std::vector<int64_t>& lengths) const;
    void read_first_sequences(Read read, int64_t first, int64_t count, std::vector<int64_t>& out) const;
    int64_t first_sequence_at(int64_t document) const;
    bool has_one_sequence_each() const;
    [[noreturn]] void refuse(const std::string& what) const;

    const LocalBytes index_;
    const int64_t group_, sequences_, documents_;
    const bool one_sequence_each_;
    std::vector<int64_t> borders_;
};

}  // namespace mindllm
