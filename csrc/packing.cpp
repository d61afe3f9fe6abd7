#include "packing.hpp"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>

#include "errors.hpp"

namespace mindllm {

namespace {

constexpr int64_t kMaxDocuments = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxFullBins = std::numeric_limits<int64_t>::max() / 2;

void require_sizes(int64_t n, int64_t capacity) {
    if (capacity < 2 || capacity > BestFitPacker::kMaxCapacity) {
        throw FormatError("a capacity of " + std::to_string(capacity) + " tokens; give 2 to " +
                          std::to_string(BestFitPacker::kMaxCapacity));
    }
    if (n > kMaxDocuments) {
        throw FormatError(std::to_string(n) + " documents; pack at most " + std::to_string(kMaxDocuments) + " at once");
    }
}

}  // namespace

void RoomSet::reset(int32_t capacity) {
    words_.assign(capacity / 64 + 1, 0);
    summary_.assign(words_.size() / 64 + 1, 0);
    insert(capacity);
}

void RoomSet::insert(int32_t room) {
    words_[room / 64] |= uint64_t{1} << (room % 64);
    summary_[room / 4096] |= uint64_t{1} << (room / 64 % 64);
}

void RoomSet::erase(int32_t room) {
    uint64_t& word = words_[room / 64];
    word &= ~(uint64_t{1} << (room % 64));
    if (word == 0) summary_[room / 4096] &= ~(uint64_t{1} << (room / 64 % 64));
}

int32_t RoomSet::at_least(int32_t tokens) const {
    int32_t word = tokens / 64;
    uint64_t bits = words_[word] & (~uint64_t{0} << (tokens % 64));
    if (bits == 0) {  // so `capacity` lies in a later word, and the search ends there at the latest
        ++word;
        int32_t group = word / 64;
        uint64_t filled = summary_[group] & (~uint64_t{0} << (word % 64));
        while (filled == 0) filled = summary_[++group];
        word = 64 * group + __builtin_ctzll(filled);
        bits = words_[word];
    }
    return 64 * word + __builtin_ctzll(bits);
}

// Fills long_documents_, short_counts_ and length_counts_, and returns the number of full bins. Reads each length once,
// so that nothing goes astray if another thread writes to them.
int64_t BestFitPacker::read_lengths(const int64_t* lengths, int64_t n, int64_t capacity) {
    full_bins_ = open_bins_ = 0;  // before anything can throw
    require_sizes(n, capacity);
    capacity_ = static_cast<int32_t>(capacity);
    long_documents_.clear();
    short_counts_.resize(n);
    length_counts_.assign(capacity, 0);
    int64_t full_bins = 0;
    for (int64_t document = 0; document < n; ++document) {
        const int64_t length = __atomic_load_n(lengths + document, __ATOMIC_RELAXED);
        if (length < 0) {
            throw FormatError("document " + std::to_string(document) + " has " + std::to_string(length) +
                              " tokens; give lengths of 0 or more");
        }
        if (length < capacity) {
            const int32_t count = static_cast<int32_t>(length);
            short_counts_[document] = count;
            ++length_counts_[count];
            continue;
        }
        const int64_t predictions = length - 1, step = capacity - 1;
        const int64_t full = predictions / step, left = predictions % step;
        long_documents_.push_back({document, full_bins});
        if (full > kMaxFullBins - full_bins) {
            throw FormatError("documents up to " + std::to_string(document) + " fill more than " +
                              std::to_string(kMaxFullBins) + " samples; give a larger capacity");
        }
        full_bins += full;
        const int32_t count = left == 0 ? 0 : static_cast<int32_t>(left + 1);
        short_counts_[document] = -count;
        ++length_counts_[count];
    }
    length_counts_[0] = 0;
    return full_bins;
}

// Best-fit decreasing on numbers alone: takes the pieces of one length together. The bin that a piece went into has the
// least room of those that hold another one of its length, so it takes as many as it can hold, and bins of equal room
// take equally many. Calls move(room, each, bins, left): `bins` bins with `room` tokens free, new ones if that is the
// capacity, take the next `each` pieces each and have `left` tokens free then. Returns the number of bins.
template <typename Move>
int64_t BestFitPacker::fit(Move move) {
    rooms_.reset(capacity_);
    room_counts_.assign(capacity_, 0);
    int64_t opened = 0;
    for (int32_t length = capacity_ - 1; length > 0; --length) {
        int32_t pieces = length_counts_[length];
        while (pieces > 0) {
            const int32_t room = rooms_.at_least(length);
            const int32_t each = std::min(room / length, pieces);
            int32_t bins = pieces / each;
            if (room == capacity_) {
                opened += bins;
            } else {
                bins = std::min(bins, room_counts_[room]);
                room_counts_[room] -= bins;
                if (room_counts_[room] == 0) rooms_.erase(room);
            }
            const int32_t left = room - each * length;
            if (left > 0) {
                if (room_counts_[left] == 0) rooms_.insert(left);
                room_counts_[left] += bins;
            }
            move(room, each, bins, left);
            pieces -= each * bins;
        }
    }
    return opened;
}

int64_t BestFitPacker::count_bins(const int64_t* lengths, int64_t n, int64_t capacity) {
    const int64_t full_bins = read_lengths(lengths, n, capacity);
    return full_bins + fit([](int32_t, int32_t, int32_t, int32_t) {});
}

void BestFitPacker::pack(const int64_t* lengths, int64_t n, int64_t capacity) {
    const int64_t full_bins = read_lengths(lengths, n, capacity);
    next_slot_.resize(capacity_);
    int32_t slots = 0;
    for (int32_t length = capacity_ - 1; length > 0; --length) {
        next_slot_[length] = slots;
        slots += length_counts_[length];
    }
    short_pieces_.resize(slots);
    slot_bins_.resize(slots);
    bin_below_.resize(slots);
    bin_ends_.resize(slots);
    top_bin_.assign(capacity_, -1);

    int32_t slot = 0, new_bin = 0;
    const int64_t open_bins = fit([&](int32_t room, int32_t each, int32_t bins, int32_t left) {
        for (; bins > 0; --bins) {
            int32_t bin = new_bin;
            if (room == capacity_) {
                bin_ends_[bin] = 0;  // counts its pieces for now
                ++new_bin;
            } else {
                bin = top_bin_[room];
                top_bin_[room] = bin_below_[bin];
            }
            bin_ends_[bin] += each;
            for (int32_t piece = 0; piece < each; ++piece) slot_bins_[slot++] = bin;
            if (left > 0) {
                bin_below_[bin] = top_bin_[left];
                top_bin_[left] = bin;
            }
        }
    });
    int32_t start = 0;
    for (int32_t bin = 0; bin < new_bin; ++bin) {
        const int32_t count = bin_ends_[bin];
        bin_ends_[bin] = start;
        start += count;
    }
    place();
    full_bins_ = full_bins;
    open_bins_ = open_bins;
}

// Writes each short piece behind those that its bin already has: bin_ends_ moves from the bins' starts to their ends.
void BestFitPacker::place() {
    const int32_t documents = static_cast<int32_t>(short_counts_.size());
    for (int32_t document = 0; document < documents; ++document) {
        const int32_t count = short_counts_[document];
        if (count == 0) continue;
        const int32_t bin = slot_bins_[next_slot_[std::abs(count)]++];
        short_pieces_[bin_ends_[bin]++] = {document, count};
    }
}

Piece BestFitPacker::whole(ShortPiece piece) const {
    if (piece.count > 0) return {piece.document, 0, piece.count};
    const auto owner = std::lower_bound(
        long_documents_.begin(), long_documents_.end(), piece.document,
        [](const LongDocument& candidate, int64_t document) { return candidate.document < document; });
    const int64_t end_bin = owner + 1 == long_documents_.end() ? full_bins_ : (owner + 1)->first_bin;
    return {piece.document, (end_bin - owner->first_bin) * (capacity_ - 1), -piece.count};
}

void BestFitPacker::pieces(int64_t bin, std::vector<Piece>& out) const {
    if (bin < 0 || bin >= bins()) {
        throw std::out_of_range("there is no bin " + std::to_string(bin) + " among " + std::to_string(bins()));
    }
    out.clear();
    if (bin >= full_bins_) {
        const int64_t open = bin - full_bins_;
        for (int32_t index = open == 0 ? 0 : bin_ends_[open - 1]; index < bin_ends_[open]; ++index) {
            out.push_back(whole(short_pieces_[index]));
        }
        return;
    }
    const auto after = std::upper_bound(
        long_documents_.begin(), long_documents_.end(), bin,
        [](int64_t value, const LongDocument& candidate) { return value < candidate.first_bin; });
    const LongDocument& owner = *(after - 1);
    out.push_back({owner.document, (bin - owner.first_bin) * (capacity_ - 1), capacity_});
}

}  // namespace mindllm
