// Document lengths from two tables of an .idx: the length of each sequence, and each document's first sequence. Most
// files have one sequence a document: then the first table alone tells all.
#include "document_index.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "errors.hpp"
#include "token_format.hpp"
#include "vectorised.hpp"

namespace mindllm {

namespace {

// Documents whose entries are read in one go: few, because threads that have ended leave such buffers to the process.
constexpr int64_t kAtOnce = 1 << 14;

std::string text(int64_t number) { return std::to_string(number); }

MINDLLM_VECTORISED bool counts_up(const int64_t* numbers, int64_t count, int64_t first) {
    int64_t differences = 0;
    for (int64_t i = 0; i < count; ++i) differences |= numbers[i] ^ (first + i);
    return differences == 0;
}

}  // namespace

DocumentIndex::DocumentIndex(std::string path, const TokenFileReader& reader, int64_t group)
    : index_(std::move(path)),
      group_(group),
      sequences_(reader.sequences()),
      documents_(reader.documents()),
      one_sequence_each_(has_one_sequence_each()) {
    borders_.reserve(static_cast<size_t>(documents_ / group_) + 2);
    std::vector<int64_t> lengths;
    int64_t tokens = 0;
    const int64_t at_once = std::max<int64_t>(1, kAtOnce / group_) * group_;
    for (int64_t first = 0; first < documents_; first += at_once) {
        const int64_t count = std::min(at_once, documents_ - first);
        read_lengths(&LocalBytes::read_in_order, first, count, lengths);
        for (int64_t start = 0; start < count; start += group_) {
            borders_.push_back(tokens);
            for (int64_t i = start; i < std::min(start + group_, count); ++i) {
                if (__builtin_add_overflow(tokens, lengths[static_cast<size_t>(i)], &tokens)) refuse("beyond counting");
            }
        }
    }
    borders_.push_back(tokens);
    if (tokens != reader.tokens()) {
        refuse("the documents have " + text(tokens) + " tokens, the data " + text(reader.tokens()));
    }
}

void DocumentIndex::read_starts(int64_t group, std::vector<int64_t>& starts) const {
    thread_local std::vector<int64_t> lengths;
    const int64_t first = first_document(group), count = std::min(group_, documents_ - first);
    read_lengths(&LocalBytes::read, first, count, lengths);
    starts.resize(static_cast<size_t>(count) + 1);
    starts[0] = border(group);
    std::partial_sum(lengths.begin(), lengths.end(), starts.begin() + 1);
    for (size_t i = 1; i < starts.size(); ++i) starts[i] += starts[0];
    if (starts.back() != border(group + 1)) refuse_change();
}

void DocumentIndex::refuse_change() const {
    index_.check_end();
    refuse("it has changed since it was opened");
}

void DocumentIndex::read_lengths_in_order(int64_t group, std::vector<int64_t>& lengths) const {
    const int64_t first = first_document(group);
    read_lengths(&LocalBytes::read_in_order, first, std::min(group_, documents_ - first), lengths);
    uint64_t tokens = 0;  // of a file that has changed the sum may be anything
    for (const int64_t length : lengths) tokens += static_cast<uint64_t>(length);
    if (tokens != static_cast<uint64_t>(group_tokens(group))) refuse("it has changed since it was opened");
}

void DocumentIndex::prefetch(int64_t group) const {
    if (!one_sequence_each_) return;
    const int64_t first = first_document(group), count = std::min(group_, documents_ - first);
    index_.prefetch(static_cast<int64_t>(kIndexHeaderBytes) + 4 * first, 4 * count);
}

// The tokens of documents [first, first + count).
void DocumentIndex::read_lengths(Read read, int64_t first, int64_t count, std::vector<int64_t>& lengths) const {
    if (one_sequence_each_) return read_lengths_of_sequences(read, first, count, lengths);
    std::vector<int64_t> sequences, parts;
    read_first_sequences(read, first, count + 1, sequences);
    lengths.assign(static_cast<size_t>(count), 0);
    for (int64_t document = 0; document < count; ++document) {
        const auto at = static_cast<size_t>(document);
        for (int64_t from = sequences[at]; from < sequences[at + 1]; from += kAtOnce) {
            read_lengths_of_sequences(read, from, std::min(kAtOnce, sequences[at + 1] - from), parts);
            for (const int64_t part : parts) {
                if (__builtin_add_overflow(lengths[at], part, &lengths[at])) refuse("beyond counting");
            }
        }
    }
}

void DocumentIndex::read_lengths_of_sequences(Read read, int64_t first, int64_t count,
                                              std::vector<int64_t>& lengths) const {
    thread_local std::vector<int32_t> stored;
    stored.resize(static_cast<size_t>(count));
    (index_.*read)(static_cast<int64_t>(kIndexHeaderBytes) + 4 * first, 4 * count, stored.data());
    lengths.assign(stored.begin(), stored.end());
    int32_t all = 0;
    for (const int32_t length : stored) all |= length;
    if (all < 0) refuse("a sequence from " + text(first) + " on has a negative length");
}

// Where the .idx says which the first sequence of a document is.
int64_t DocumentIndex::first_sequence_at(int64_t document) const {
    return static_cast<int64_t>(kIndexHeaderBytes) + 12 * sequences_ + 8 * document;
}

// The first sequences of documents [first, first + count), where document `documents_` is the end of all.
void DocumentIndex::read_first_sequences(Read read, int64_t first, int64_t count, std::vector<int64_t>& out) const {
    out.resize(static_cast<size_t>(count));
    (index_.*read)(first_sequence_at(first), 8 * count, out.data());
    int64_t previous = 0;
    for (const int64_t sequence : out) {
        if (sequence < previous || sequence > sequences_) refuse("a document from " + text(first) + " on starts wrong");
        previous = sequence;
    }
}

// Whether documents and sequences are the same. What is not is checked where it is read.
bool DocumentIndex::has_one_sequence_each() const {
    // The reader has opened a file of that size, and another may be there by now.
    if (index_.bytes() != static_cast<int64_t>(kIndexHeaderBytes) + 12 * sequences_ + 8 * (documents_ + 1)) {
        refuse_change();
    }
    if (documents_ != sequences_) return false;
    std::vector<int64_t> sequences(static_cast<size_t>(std::min(kAtOnce, documents_)));
    for (int64_t first = 0; first < documents_; first += kAtOnce) {
        const int64_t count = std::min(kAtOnce, documents_ - first);
        index_.read_in_order(first_sequence_at(first), 8 * count, sequences.data());
        if (!counts_up(sequences.data(), count, first)) return false;
    }
    return true;
}

void DocumentIndex::refuse(const std::string& what) const { throw FormatError(path(), "damaged: " + what); }

}  // namespace mindllm
