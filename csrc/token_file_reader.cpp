// The reader of Megatron token files: validation of the index, ranges of the stream, and scans of the ids.
#include "token_file_reader.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "errors.hpp"

namespace mindllm {

namespace {

constexpr int64_t kBlock = 1 << 16;  // tokens scanned at a time

std::string text(int64_t number) { return std::to_string(number); }

}  // namespace

TokenFileReader::TokenFileReader(const std::string& prefix, bool thorough)
    : prefix_(prefix), index_(prefix + ".idx"), data_(prefix + ".bin") {
    read_header();
    if (thorough) check_index();
    const int64_t bytes = check_ends();
    check_data_size(bytes);
    tokens_ = bytes / type_.bytes;
}

void TokenFileReader::read_header() {
    const std::string& path = index_.path();
    if (index_.bytes() == 0) throw FormatError(path, "the index is empty");
    unsigned char header[kIndexHeaderBytes];
    index_.read(header, std::min<uint64_t>(index_.bytes(), sizeof header), 0);
    if (std::memcmp(header, kIndexMagic, std::min<uint64_t>(index_.bytes(), sizeof kIndexMagic)) != 0) {
        throw FormatError(path, "bad magic: not the index of a Megatron token file");
    }
    if (index_.bytes() < kIndexHeaderBytes) {
        throw FormatError(path, "the index is truncated: " + std::to_string(index_.bytes()) +
                                    " bytes, the header alone has " + std::to_string(kIndexHeaderBytes));
    }
    const auto version = load<uint64_t>(header + kVersionAt);
    if (version != kIndexVersion)
        throw FormatError(path, "bad version " + std::to_string(version) + ", only 1 is known");
    const auto type = token_type_from_code(header[kTypeAt]);
    if (!type) {
        const int code = header[kTypeAt];
        const bool is_float = code == 6 || code == 7;
        throw FormatError(path, "dtype code " + std::to_string(code) +
                                    (is_float ? " means floats, which are no tokens" : " is unknown"));
    }
    type_ = *type;

    // Divided rather than multiplied, so that no count can overflow.
    const auto sequences = load<uint64_t>(header + kSequencesAt);
    const auto starts = load<uint64_t>(header + kDocumentsAt);
    const uint64_t room = index_.bytes() - kIndexHeaderBytes;
    if (starts == 0) throw FormatError(path, "the index has no document starts, not even the closing one");
    if (sequences > room / 12 || starts > (room - 12 * sequences) / 8) {
        throw FormatError(path, "the index is truncated, or its counts are wrong: " + std::to_string(sequences) +
                                    " sequences and " + std::to_string(starts) + " document starts do not fit in " +
                                    std::to_string(index_.bytes()) + " bytes");
    }
    if (12 * sequences + 8 * starts != room) {
        throw FormatError(
            path, "the counts do not fit the size of the index: " + std::to_string(room - 12 * sequences - 8 * starts) +
                      " bytes follow the last entry");
    }
    sequences_ = static_cast<int64_t>(sequences);
    documents_ = static_cast<int64_t>(starts) - 1;
    lengths_ = index_.data() + kIndexHeaderBytes;
    offsets_ = lengths_ + 4 * sequences;
    starts_ = offsets_ + 8 * sequences;
}

// Returns the bytes that the sequences take, by the last of them.
int64_t TokenFileReader::check_ends() const {
    if (entry<int64_t>(starts_, 0) != 0)
        throw FormatError(index_.path(), "the first document does not start at sequence 0");
    const auto documents_end = entry<int64_t>(starts_, static_cast<uint64_t>(documents_));
    if (documents_end != sequences_) refuse_documents_end(documents_end);
    if (sequences_ == 0) return 0;
    const int64_t last = sequences_ - 1;
    const auto last_entry = static_cast<uint64_t>(last);
    const auto first_offset = entry<int64_t>(offsets_, 0), offset = entry<int64_t>(offsets_, last_entry);
    const int64_t length = entry<int32_t>(lengths_, last_entry);
    if (first_offset != 0) refuse_offset(0, first_offset, "but the first is 0");
    if (length < 0)
        throw FormatError(index_.path(), "sequence " + text(last) + " has a negative length, " + text(length));
    if (offset % type_.bytes != 0) refuse_offset(last, offset, "misaligned for " + std::string(type_.name));
    int64_t end = 0;
    if (offset < 0 || __builtin_add_overflow(offset, length * type_.bytes, &end))
        refuse_offset(last, offset, "which no file can hold");
    return end;
}

template <typename T>
T TokenFileReader::entry(const unsigned char* table, uint64_t number) const {
    T value;
    index_.read(&value, sizeof value, static_cast<uint64_t>(table - index_.data()) + sizeof value * number);
    return value;
}

void TokenFileReader::refuse_documents_end(int64_t end) const {
    throw FormatError(index_.path(),
                      "the documents end at sequence " + text(end) + ", but there are " + text(sequences_));
}

void TokenFileReader::refuse_offset(int64_t sequence, int64_t offset, const std::string& why) const {
    throw FormatError(index_.path(), "the offset of sequence " + text(sequence) + " is " + text(offset) + ", " + why);
}

void TokenFileReader::check_index() const {
    check_documents();
    check_offsets();
}

template <typename T, typename Visit>
void TokenFileReader::visit_entries(const unsigned char* table, int64_t count, Visit&& visit) const {
    std::vector<T> entries(static_cast<size_t>(std::min(count, kBlock)));
    const auto table_at = static_cast<uint64_t>(table - index_.data());
    for (int64_t first = 0; first < count; first += kBlock) {
        const int64_t n = std::min(kBlock, count - first);
        index_.read(entries.data(), static_cast<size_t>(n) * sizeof(T),
                    table_at + static_cast<uint64_t>(first) * sizeof(T));
        visit(first, entries.data(), n);
    }
}

void TokenFileReader::check_documents() const {
    int64_t previous = 0;
    visit_entries<int64_t>(starts_, documents_ + 1, [&](int64_t document, const int64_t* firsts, int64_t n) {
        if (document == 0 && firsts[0] != 0)
            throw FormatError(index_.path(), "the first document does not start at sequence 0");
        for (int64_t i = 0; i < n; ++i) {
            if (firsts[i] < previous || firsts[i] > sequences_) {
                throw FormatError(index_.path(), "document " + text(document + i - 1) + " ends at sequence " +
                                                     text(firsts[i]) +
                                                     ", which is before its start or after the last of " +
                                                     text(sequences_));
            }
            previous = firsts[i];
        }
    });
    if (previous != sequences_) refuse_documents_end(previous);
}

void TokenFileReader::check_offsets() const {
    int64_t expected = 0;
    std::vector<int64_t> offsets(static_cast<size_t>(std::min(sequences_, kBlock)));
    const auto offsets_at = static_cast<uint64_t>(offsets_ - index_.data());
    visit_entries<int32_t>(lengths_, sequences_, [&](int64_t sequence, const int32_t* lengths, int64_t n) {
        index_.read(offsets.data(), static_cast<size_t>(n) * 8, offsets_at + static_cast<uint64_t>(sequence) * 8);
        for (int64_t i = 0; i < n; ++i) {
            const int64_t length = lengths[i], offset = offsets[static_cast<size_t>(i)];
            if (length < 0) {
                throw FormatError(index_.path(),
                                  "sequence " + text(sequence + i) + " has a negative length, " + text(length));
            }
            if (offset != expected) {
                const bool misaligned = offset % type_.bytes != 0;
                refuse_offset(sequence + i, offset,
                              misaligned ? "misaligned for " + std::string(type_.name)
                                         : "but the lengths before it give " + text(expected));
            }
            if (__builtin_add_overflow(expected, length * type_.bytes, &expected))
                throw FormatError(index_.path(), "the lengths add up to more than a file can hold");
        }
    });
    check_data_size(expected);
}

void TokenFileReader::check_data_size(int64_t expected_bytes) const {
    const auto expected = static_cast<uint64_t>(expected_bytes);
    if (data_.bytes() == expected) return;
    const std::string sizes = std::to_string(data_.bytes()) + " bytes, the index says " + std::to_string(expected);
    if (data_.bytes() == 0) throw FormatError(data_.path(), "the data is empty: " + sizes);
    if (data_.bytes() % static_cast<uint64_t>(type_.bytes) != 0) {
        throw FormatError(data_.path(),
                          "misaligned: not a whole number of " + std::string(type_.name) + " tokens: " + sizes);
    }
    throw FormatError(
        data_.path(),
        (data_.bytes() < expected ? "shorter than its index says: " : "longer than its index says: ") + sizes);
}

int64_t TokenFileReader::document_start(int64_t document) const {
    if (document < 0 || document > documents_) {
        throw std::out_of_range(prefix_ + ": there is no document " + text(document) + " among " + text(documents_));
    }
    return start_of(document, first_sequence(document), [this](int64_t sequence) { return sequence_offset(sequence); });
}

// `first` is the document's first sequence, and `offset_of` gives the offset of a sequence that exists.
template <typename OffsetOf>
int64_t TokenFileReader::start_of(int64_t document, int64_t first, OffsetOf&& offset_of) const {
    if (first == sequences_) return tokens_;
    const bool exists = first >= 0 && first < sequences_;
    const int64_t offset = exists ? offset_of(first) : -1;
    if (offset < 0 || offset % type_.bytes != 0 || offset / type_.bytes > tokens_) {
        throw FormatError(index_.path(), "the index is damaged: document " + text(document) + " starts at sequence " +
                                             text(first) + " of " + text(sequences_) +
                                             (exists ? ", which starts at byte " + text(offset) + " of the data" : ""));
    }
    return offset / type_.bytes;
}

void TokenFileReader::document_lengths(int64_t start, int64_t end, int64_t* lengths) const {
    int64_t from = document_start(start);
    for (int64_t document = start; document < end; ++document) {
        const int64_t to = document_start(document + 1);
        if (to < from) {
            throw FormatError(index_.path(), "the index is damaged: document " + text(document) + " ends at token " +
                                                 text(to) + ", before its start at " + text(from));
        }
        *lengths++ = to - from;
        from = to;
    }
}

void TokenFileReader::read_data(void* target, int64_t bytes, int64_t offset) const {
    const auto size = static_cast<int64_t>(data_.bytes());
    if (offset < 0 || bytes < 0 || offset > size || bytes > size - offset) {
        throw std::out_of_range(data_.path() + ": no " + text(bytes) + " bytes from byte " + text(offset) + " among " +
                                text(size));
    }
    data_.read(target, static_cast<size_t>(bytes), static_cast<uint64_t>(offset));
}

const unsigned char* TokenFileReader::address(int64_t token) const {
    return data_.data() == nullptr ? nullptr : data_.data() + token * type_.bytes;
}

void TokenFileReader::require_range(int64_t start, int64_t count) const {
    if (start < 0 || count < 0 || start > tokens_ || count > tokens_ - start) {
        throw std::out_of_range(prefix_ + ": no range of " + text(count) + " tokens from " + text(start) + " among " +
                                text(tokens_));
    }
}

template <typename T>
void TokenFileReader::gather(const int64_t* starts, const int64_t* counts, int64_t n, T* out, int64_t room) const {
    int64_t left = room;
    for (int64_t i = 0; i < n; ++i) {
        require_range(starts[i], counts[i]);
        if (counts[i] > left)
            throw std::out_of_range(prefix_ + ": the ranges hold more than the " + text(room) + " items of out");
        left -= counts[i];
    }
    if (left != 0) throw std::out_of_range(prefix_ + ": the ranges leave " + text(left) + " items of out unwritten");
    with_token_type(type_.type, [&](auto zero) {
        using Token = decltype(zero);
        for (int64_t i = 0; i < n; ++i) {
            const auto* source = reinterpret_cast<const Token*>(address(starts[i]));
            if constexpr (sizeof(Token) > sizeof(T)) {
                for (int64_t j = 0; j < counts[i]; ++j) {
                    if (source[j] != static_cast<T>(source[j])) {
                        throw FormatError(prefix_, "token id " + text(source[j]) + " does not fit int32");
                    }
                }
            }
            out = std::transform(source, source + counts[i], out, [](Token id) { return static_cast<T>(id); });
        }
    });
}

template void TokenFileReader::gather(const int64_t*, const int64_t*, int64_t, int32_t*, int64_t) const;
template void TokenFileReader::gather(const int64_t*, const int64_t*, int64_t, int64_t*, int64_t) const;

int64_t TokenFileReader::max_token() const {
    if (tokens_ == 0) return -1;
    return with_token_type(type_.type, [&](auto zero) {
        using Token = decltype(zero);
        const auto* ids = reinterpret_cast<const Token*>(address(0));
        Token largest = ids[0];
        for (int64_t i = 1; i < tokens_; ++i) largest = std::max(largest, ids[i]);
        return static_cast<int64_t>(largest);
    });
}

std::optional<StrayToken> TokenFileReader::find_stray(int64_t vocab_size) const {
    return with_token_type(type_.type, [&](auto zero) -> std::optional<StrayToken> {
        using Token = decltype(zero);
        const auto* ids = reinterpret_cast<const Token*>(address(0));
        const auto stray = [vocab_size](Token id) { return id < 0 || static_cast<int64_t>(id) >= vocab_size; };
        for (int64_t start = 0; start < tokens_; start += kBlock) {
            const int64_t end = std::min(start + kBlock, tokens_);
            Token smallest = ids[start], largest = ids[start];
            for (int64_t i = start; i < end; ++i) {
                smallest = std::min(smallest, ids[i]);
                largest = std::max(largest, ids[i]);
            }
            if (!stray(smallest) && !stray(largest)) continue;
            const int64_t token = std::find_if(ids + start, ids + end, stray) - ids;
            const int64_t document = document_of(token);
            return StrayToken{document, token - document_start(document), static_cast<int64_t>(ids[token])};
        }
        return std::nullopt;
    });
}

int64_t TokenFileReader::document_of(int64_t token) const {
    require_range(token, 1);
    const auto start = [this](int64_t document) {
        return start_of(document, entry<int64_t>(starts_, static_cast<uint64_t>(document)), [this](int64_t sequence) {
            return entry<int64_t>(offsets_, static_cast<uint64_t>(sequence));
        });
    };
    int64_t low = 0, high = documents_;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        (start(middle) <= token ? low : high) = middle;
    }
    if (documents_ == 0 || start(low) > token || start(low + 1) <= token)
        throw FormatError(index_.path(), "the index is damaged: no document holds token " + text(token));
    return low;
}

}  // namespace mindllm
