// Best-fit decreasing packing of documents into bins of a fixed number of tokens: of a whole collection (Python,
// packing_binding.cpp), or of one window of consecutive documents after the other.
#pragma once

#include <cstdint>
#include <vector>

namespace mindllm {

// Tokens [start, start + count) of a document.
struct Piece {
    int64_t document;
    int64_t start;
    int64_t count;
};

// The set of the rooms (tokens still free) that some open bin has; `capacity`, a new bin's, is always in it. A bit a
// room, and a bit a word of those, so that a search reads few words.
class RoomSet {
  public:
    void reset(int32_t capacity);
    void insert(int32_t room);
    void erase(int32_t room);
    // The smallest room of at least `tokens` <= capacity.
    int32_t at_least(int32_t tokens) const;

  private:
    std::vector<uint64_t> words_;
    std::vector<uint64_t> summary_;
};

// Packs documents into bins of `capacity` tokens: pieces in decreasing order of length, equal ones in document order,
// each into the open bin with the least room that holds it, among equals the one filled last, else into a new bin.
//
// A document that fits is one piece, never split; one without tokens is dropped. A longer one is cut into pieces of
// `capacity` tokens that overlap by one, so that each of its next-token predictions occurs once, and a shorter last
// piece, unless that would be one token, which predicts nothing. Pieces of `capacity` tokens are bins of their own: the
// first ones, in document order, and never stored, so that memory is O(documents + capacity) however long those are.
//
// Time O(documents + capacity) a call: documents are counted by length, never compared. Memory is kept from call to
// call. One thread at a time may pack; any number may then read the bins.
class BestFitPacker {
  public:
    static constexpr int64_t kMaxCapacity = int64_t{1} << 24;

    // Packs lengths[n], in tokens. Throws FormatError for a negative length, a capacity outside [2, kMaxCapacity], 2^31
    // documents or more, or pieces beyond int64; there are no bins then.
    void pack(const int64_t* lengths, int64_t n, int64_t capacity);
    // The number of bins of that packing, without the packing: several times cheaper. Leaves no bins.
    int64_t count_bins(const int64_t* lengths, int64_t n, int64_t capacity);

    int64_t bins() const { return full_bins_ + open_bins_; }
    // The number of pieces in all bins.
    int64_t pieces() const { return bins() == 0 ? 0 : full_bins_ + static_cast<int64_t>(short_pieces_.size()); }
    // Replaces `out` by the pieces of a bin, in document order. std::out_of_range for a bin that is not there.
    void pieces(int64_t bin, std::vector<Piece>& out) const;

  private:
    // A document with full pieces.
    struct LongDocument {
        int64_t document;
        int64_t first_bin;
    };
    // A piece of less than `capacity` tokens: a document, or the last tokens of a long one, whose count is negative.
    struct ShortPiece {
        int32_t document;
        int32_t count;
    };

    int64_t read_lengths(const int64_t* lengths, int64_t n, int64_t capacity);
    template <typename Move>
    int64_t fit(Move move);
    void place();
    Piece whole(ShortPiece piece) const;

    int32_t capacity_ = 0;
    int64_t full_bins_ = 0;
    int64_t open_bins_ = 0;                     // those of short pieces
    std::vector<LongDocument> long_documents_;  // increasing in both
    std::vector<ShortPiece> short_pieces_;      // bin after bin
    std::vector<int32_t> bin_ends_;             // [open bins]: where each ends in short_pieces_; stale behind

    // Scratch.
    RoomSet rooms_;
    std::vector<int32_t> short_counts_;   // [document]: the count of its short piece, 0 for none
    std::vector<int32_t> length_counts_;  // [length]: short pieces
    std::vector<int32_t> room_counts_;    // [room]: open bins
    std::vector<int32_t> top_bin_;        // [room]: the bin filled last, -1 for none
    std::vector<int32_t> bin_below_;      // [bin]: the one with the same room that was filled before it, -1 for none
    std::vector<int32_t> slot_bins_;      // the bin of each short piece, in decreasing order of length
    std::vector<int32_t> next_slot_;      // [length]: the slot of its next piece
};

}  // namespace mindllm
