// The writer of Megatron token files: range checks, conversion to the file's type, and the index.
#include "token_file_writer.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "token_file_reader.hpp"
#include "vectorised.hpp"

namespace mindllm {

namespace {

constexpr int64_t kBlock = 1 << 16;  // items converted, checked or derived at a time

TokenTypeInfo writable_type(const std::string& name) {
    if (name != "uint16" && name != "int32")
        throw FormatError("token dtype '" + name + "' is neither uint16 nor int32");
    return *token_type_from_name(name);
}

int64_t largest_id(TokenType type) {
    return type == TokenType::kU16 ? std::numeric_limits<uint16_t>::max() : std::numeric_limits<int32_t>::max();
}

// All bits that are set in any of them.
template <typename T>
MINDLLM_VECTORISED std::make_unsigned_t<T> bits_of(const T* ids, int64_t count) {
    std::make_unsigned_t<T> bits = 0;
    for (int64_t i = 0; i < count; ++i) bits |= static_cast<std::make_unsigned_t<T>>(ids[i]);
    return bits;
}

template <typename Target, typename T>
MINDLLM_VECTORISED void narrow(const T* ids, int64_t count, Target* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<Target>(ids[i]);
}

}  // namespace

IndexWriter::IndexWriter(std::string path, TokenTypeInfo type) : file_(std::move(path)), type_(type) {
    const unsigned char placeholder[kIndexHeaderBytes] = {};
    file_.write(placeholder, sizeof placeholder);
}

void IndexWriter::append(const int64_t* lengths, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        if (lengths[i] < 0 || lengths[i] > std::numeric_limits<int32_t>::max()) {
            throw FormatError(path(), "document " + std::to_string(documents_ + i) + " has a length of " +
                                          std::to_string(lengths[i]) + " tokens; the format holds 0 to 2147483647");
        }
    }
    std::vector<int32_t> narrow(static_cast<size_t>(std::min(count, kBlock)));
    for (int64_t start = 0; start < count; start += kBlock) {
        const int64_t size = std::min(kBlock, count - start);
        std::copy_n(lengths + start, size, narrow.begin());
        file_.write(narrow.data(), static_cast<size_t>(size) * sizeof(int32_t));
    }
    documents_ += count;
}

void IndexWriter::finish() {
    write_offsets();
    write_document_starts();
    file_.flush();

    unsigned char header[kIndexHeaderBytes];
    const uint64_t sequences = static_cast<uint64_t>(documents_);
    const uint64_t starts = sequences + 1;
    std::copy(std::begin(kIndexMagic), std::end(kIndexMagic), header);
    std::memcpy(header + kVersionAt, &kIndexVersion, 8);
    header[kTypeAt] = static_cast<unsigned char>(type_.type);
    std::memcpy(header + kSequencesAt, &sequences, 8);
    std::memcpy(header + kDocumentsAt, &starts, 8);
    file_.overwrite(header, sizeof header, 0);
    file_.sync();
}

void IndexWriter::write_offsets() {
    file_.flush();
    std::vector<int32_t> lengths(static_cast<size_t>(std::min(documents_, kBlock)));
    std::vector<int64_t> offsets(lengths.size());
    int64_t offset = 0;
    for (int64_t start = 0; start < documents_; start += kBlock) {
        const int64_t size = std::min(kBlock, documents_ - start);
        file_.read_back(lengths.data(), static_cast<size_t>(size) * sizeof(int32_t),
                        static_cast<int64_t>(kIndexHeaderBytes) + start * static_cast<int64_t>(sizeof(int32_t)));
        for (int64_t i = 0; i < size; ++i) {
            offsets[static_cast<size_t>(i)] = offset;
            offset += lengths[static_cast<size_t>(i)] * type_.bytes;
        }
        file_.write(offsets.data(), static_cast<size_t>(size) * sizeof(int64_t));
    }
}

void IndexWriter::write_document_starts() {
    std::vector<int64_t> starts(static_cast<size_t>(std::min(documents_ + 1, kBlock)));
    for (int64_t start = 0; start <= documents_; start += kBlock) {
        const int64_t size = std::min(kBlock, documents_ + 1 - start);
        std::iota(starts.begin(), starts.begin() + size, start);
        file_.write(starts.data(), static_cast<size_t>(size) * sizeof(int64_t));
    }
}

TokenFileWriter::TokenFileWriter(const std::string& prefix, const std::string& type)
    : prefix_(prefix), type_(writable_type(type)) {
    data_ = std::make_unique<StagedFile>(prefix + ".bin");
    index_ = std::make_unique<IndexWriter>(prefix + ".idx", type_);
}

template <typename T>
void TokenFileWriter::append(const T* tokens, int64_t count, const int64_t* lengths, int64_t documents) {
    const std::lock_guard<std::mutex> lock(mutex_);
    require_open();
    append_locked(tokens, count, lengths, documents);
}

template <typename T>
void TokenFileWriter::append_locked(const T* tokens, int64_t count, const int64_t* lengths, int64_t documents) {
    int64_t total = 0;
    for (int64_t i = 0; i < documents; ++i) {
        // Compared before it is added, so that no sum can overflow.
        if (lengths[i] < 0 || lengths[i] > count - total) {
            throw FormatError(prefix_, "length " + std::to_string(lengths[i]) + " of document " +
                                           std::to_string(documents_ + i) + " does not fit the " +
                                           std::to_string(count) + " tokens given");
        }
        total += lengths[i];
    }
    if (total != count) {
        throw FormatError(prefix_, "the lengths add up to " + std::to_string(total) + ", but " + std::to_string(count) +
                                       " tokens were given");
    }
    check_ids(tokens, count, lengths, documents);
    try {
        index_->append(lengths, documents);
        write_tokens(tokens, count);
    } catch (const IoError&) {
        index_.reset();
        data_.reset();
        throw;
    }
    documents_ += documents;
    tokens_ += count;
}

template <typename T>
void TokenFileWriter::check_ids(const T* tokens, int64_t count, const int64_t* lengths, int64_t documents) const {
    using Unsigned = std::make_unsigned_t<T>;
    const uint64_t limit = static_cast<uint64_t>(largest_id(type_.type));
    if (std::is_unsigned_v<T> && std::numeric_limits<T>::max() <= limit) return;
    // As an unsigned number a negative id is at least half the range, hence too large unless the limit is clipped here.
    const auto bound =
        static_cast<Unsigned>(std::min<uint64_t>(limit, static_cast<uint64_t>(std::numeric_limits<T>::max())));
    for (int64_t start = 0; start < count; start += kBlock) {
        const T* const end = tokens + std::min(start + kBlock, count);
        // The bound is a power of two less one, so that ids are within it if all their bits together are.
        if (bits_of(tokens + start, end - (tokens + start)) <= bound) continue;
        const T* const first =
            std::find_if(tokens + start, end, [bound](T id) { return static_cast<Unsigned>(id) > bound; });
        int64_t position = first - tokens, document = 0;
        while (document < documents && position >= lengths[document]) position -= lengths[document++];
        throw FormatError(prefix_, "token id " + std::to_string(*first) + " at position " + std::to_string(position) +
                                       " of document " + std::to_string(documents_ + document) + " does not fit " +
                                       std::string(type_.name) + " (0 to " + std::to_string(limit) + ")");
    }
}

template <typename T>
void TokenFileWriter::write_tokens(const T* tokens, int64_t count) {
    // The ids are in range by now, so equal width means equal bytes.
    if (static_cast<int64_t>(sizeof(T)) == type_.bytes) {
        data_->write(tokens, static_cast<size_t>(count) * sizeof(T));
        return;
    }
    with_token_type(type_.type, [&](auto zero) {
        using Target = decltype(zero);
        std::vector<Target> block(static_cast<size_t>(std::min(count, kBlock)));
        for (int64_t start = 0; start < count; start += kBlock) {
            const int64_t size = std::min(kBlock, count - start);
            narrow(tokens + start, size, block.data());
            data_->write(block.data(), static_cast<size_t>(size) * sizeof(Target));
        }
    });
}

void TokenFileWriter::append_file(const std::string& prefix) {
    const std::lock_guard<std::mutex> lock(mutex_);
    require_open();
    const TokenFileReader other(prefix);
    if (other.type().type != type_.type) {
        throw FormatError(prefix, "holds " + std::string(other.type().name) + " tokens and cannot be appended to " +
                                      prefix_ + " of " + std::string(type_.name));
    }
    try {
        with_token_type(type_.type, [&](auto zero) { append_all<decltype(zero)>(other); });
    } catch (...) {  // some of its documents may have been appended
        index_.reset();
        data_.reset();
        throw;
    }
}

template <typename T>
void TokenFileWriter::append_all(const TokenFileReader& other) {
    std::vector<int64_t> lengths(static_cast<size_t>(std::min(other.documents(), kBlock)));
    for (int64_t start = 0; start < other.documents(); start += kBlock) {
        const int64_t end = std::min(start + kBlock, other.documents());
        other.document_lengths(start, end, lengths.data());
        const int64_t first = other.document_start(start), count = other.document_start(end) - first;
        other.require_range(first, count);  // the index may have been changed since it was opened
        append_locked(reinterpret_cast<const T*>(other.address(first)), count, lengths.data(), end - start);
    }
}

void TokenFileWriter::finalize() {
    const std::lock_guard<std::mutex> lock(mutex_);
    require_open();
    // Taken over here, so that every way out of this function closes the writer and deletes what was not renamed.
    const std::unique_ptr<StagedFile> data = std::move(data_);
    const std::unique_ptr<IndexWriter> index = std::move(index_);
    data->sync();
    index->finish();
    remove_file(index->path());  // no moment may pair an older index with the new data
    data->commit();
    try {
        index->commit();
    } catch (const IoError&) {
        remove_file(data->path());
        throw;
    }
    sync_folder_of(data->path());
}

void TokenFileWriter::abort() {
    const std::lock_guard<std::mutex> lock(mutex_);
    index_.reset();
    data_.reset();
}

void TokenFileWriter::require_open() const {
    if (!data_) throw std::runtime_error(prefix_ + ": the writer was finalized or aborted before");
}

template void TokenFileWriter::append(const int8_t*, int64_t, const int64_t*, int64_t);
template void TokenFileWriter::append(const int16_t*, int64_t, const int64_t*, int64_t);
template void TokenFileWriter::append(const int32_t*, int64_t, const int64_t*, int64_t);
template void TokenFileWriter::append(const int64_t*, int64_t, const int64_t*, int64_t);
template void TokenFileWriter::append(const uint8_t*, int64_t, const int64_t*, int64_t);
template void TokenFileWriter::append(const uint16_t*, int64_t, const int64_t*, int64_t);
template void TokenFileWriter::append(const uint32_t*, int64_t, const int64_t*, int64_t);
template void TokenFileWriter::append(const uint64_t*, int64_t, const int64_t*, int64_t);

void write_index(const std::string& path, const std::string& type, const int64_t* lengths, int64_t count) {
    IndexWriter index(path, writable_type(type));
    index.append(lengths, count);
    index.finish();
    index.commit();
    sync_folder_of(path);
}

}  // namespace mindllm
