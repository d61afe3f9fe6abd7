// From a position to an epoch, a group of documents, and the documents: contiguous samples, then packed ones.
#include "sample_source.hpp"

#include <algorithm>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "errors.hpp"

namespace mindllm {

void SampleSource::require_sample(int64_t position, int64_t seq_len) {
    if (seq_len < 1 || seq_len > kMaxSeqLen || position < 0 ||
        position > std::numeric_limits<int64_t>::max() - seq_len - 1) {
        throw std::out_of_range("there is no sample of " + std::to_string(seq_len) + " tokens at " +
                                std::to_string(position));
    }
}

ContiguousSource::ContiguousSource(std::shared_ptr<const DocumentIndex> index, uint64_t key)
    : index_(std::move(index)), key_(key) {
    if (index_->tokens() == 0) throw FormatError(index_->path(), "there are no tokens to make samples of");
}

void ContiguousSource::find(int64_t position, int64_t seq_len, std::vector<Stretch>& out) const {
    require_sample(position, seq_len);
    int64_t left = seq_len + 1;
    if (left / index_->tokens() >= kMaxEpochs) {
        throw FormatError(index_->path(), std::to_string(index_->tokens()) + " tokens are too few for samples of " +
                                              std::to_string(seq_len));
    }
    int64_t number = position / index_->tokens(), offset = position % index_->tokens();
    while (left > 0) {
        const int64_t count = std::min(left, index_->tokens() - offset);
        find_in_epoch(number, offset, count, out);
        left -= count;
        offset = 0;
        ++number;
    }
}

int64_t ContiguousSource::addressing_bytes() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    size_t numbers = 0;
    for (const auto& [number, epoch] : epochs_) numbers += epoch->before.size();
    return index_->held_bytes() + static_cast<int64_t>(numbers * sizeof(int64_t));
}

std::shared_ptr<const ContiguousSource::Epoch> ContiguousSource::epoch(int64_t number) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto kept = epochs_.find(number);
    if (kept != epochs_.end()) return kept->second;
    const auto made = make_epoch(number);
    epochs_.emplace(number, made);
    if (epochs_.size() > kEpochsKept) {
        epochs_.erase(epochs_.begin()->first == number ? std::prev(epochs_.end()) : epochs_.begin());
    }
    return made;
}

std::shared_ptr<const ContiguousSource::Epoch> ContiguousSource::make_epoch(int64_t number) const {
    const uint64_t key = derive_key({key_, static_cast<uint64_t>(number)});
    Epoch made{key, KeyedPermutation(index_->groups(), key), {}};
    int64_t before = 0;
    for (int64_t i = 0; i < index_->groups(); ++i) {
        if (i % kStride == 0) made.before.push_back(before);
        before += index_->group_tokens(made.order(i));
    }
    return std::make_shared<const Epoch>(std::move(made));
}

// The place in the order of groups of the one that holds token `offset` of an epoch; reduces `offset` to that in the group.
int64_t ContiguousSource::seek(const Epoch& epoch, int64_t& offset) const {
    const auto after = std::upper_bound(epoch.before.begin(), epoch.before.end(), offset);
    int64_t place = (after - epoch.before.begin() - 1) * kStride;
    offset -= *std::prev(after);
    while (true) {
        const int64_t tokens = index_->group_tokens(epoch.order(place));
        if (offset < tokens) return place;
        offset -= tokens;
        ++place;
    }
}

void ContiguousSource::prefetch(int64_t position) const {
    const std::shared_ptr<const Epoch> order = epoch(position / index_->tokens());
    int64_t offset = position % index_->tokens();
    const int64_t place = seek(*order, offset);
    index_->prefetch(order->order(place));
}

// The stretches of tokens [offset, offset + count) of an epoch, which lie inside it.
void ContiguousSource::find_in_epoch(int64_t number, int64_t offset, int64_t count, std::vector<Stretch>& out) const {
    const std::shared_ptr<const Epoch> order = epoch(number);
    for (int64_t place = seek(*order, offset); count > 0; ++place) {
        const int64_t group = order->order(place);
        if (index_->group_tokens(group) > 0) find_in_group(*order, group, offset, count, out);
    }
}

// Takes what the group has of the tokens [offset, offset + count), and reduces both by that.
void ContiguousSource::find_in_group(const Epoch& epoch, int64_t group, int64_t& offset, int64_t& count,
                                     std::vector<Stretch>& out) const {
    thread_local std::vector<int64_t> starts;
    thread_local KeyedShuffle shuffle;
    index_->read_starts(group, starts);
    const auto documents = static_cast<int64_t>(starts.size()) - 1;
    shuffle.start(derive_key({epoch.key, static_cast<uint64_t>(group)}), documents);
    for (int64_t i = 0; i < documents; ++i) {
        const int32_t document = shuffle.next();
        const int64_t start = starts[static_cast<size_t>(document)];
        const int64_t length = starts[static_cast<size_t>(document) + 1] - start;
        if (offset >= length) {
            offset -= length;
            continue;
        }
        const int64_t taken = std::min(length - offset, count);
        out.push_back({index_->first_document(group) + document, offset, start + offset, taken});
        offset = 0;
        count -= taken;
        if (count == 0) return;
    }
}

namespace {

void lengths_of(const std::vector<int64_t>& starts, std::vector<int64_t>& lengths) {
    lengths.resize(starts.size() - 1);
    for (size_t i = 0; i < lengths.size(); ++i) lengths[i] = starts[i + 1] - starts[i];
}

}  // namespace

PackedWindows::PackedWindows(std::shared_ptr<const DocumentIndex> index, int64_t seq_len)
    : index_(std::move(index)), seq_len_(seq_len) {
    if (seq_len < 1 || seq_len > SampleSource::kMaxSeqLen) {
        throw FormatError("samples of " + std::to_string(seq_len) + " tokens; give 1 to " +
                          std::to_string(SampleSource::kMaxSeqLen));
    }
    BestFitPacker packer;
    std::vector<int64_t> starts, lengths;
    int64_t samples = 0;
    before_.reserve(static_cast<size_t>(index_->groups()) + 1);
    for (int64_t window = 0; window < index_->groups(); ++window) {
        before_.push_back(samples);
        index_->read_starts(window, starts);
        lengths_of(starts, lengths);
        samples += packer.count_bins(lengths.data(), static_cast<int64_t>(lengths.size()), seq_len + 1);
    }
    before_.push_back(samples);
}

void PackedWindows::find(int64_t sample, std::vector<Stretch>& out) const {
    thread_local BestFitPacker packer;
    thread_local std::vector<int64_t> starts, lengths;
    thread_local std::vector<Piece> pieces;
    const auto after = std::upper_bound(before_.begin(), before_.end(), sample);
    const int64_t window = after - before_.begin() - 1;
    index_->read_starts(window, starts);
    lengths_of(starts, lengths);
    packer.pack(lengths.data(), static_cast<int64_t>(lengths.size()), seq_len_ + 1);
    if (packer.bins() != *after - *std::prev(after)) index_->refuse_change();
    packer.pieces(sample - *std::prev(after), pieces);
    for (const Piece& piece : pieces) {
        out.push_back({index_->first_document(window) + piece.document, piece.start,
                       starts[static_cast<size_t>(piece.document)] + piece.start, piece.count});
    }
}

int64_t PackedWindows::held_bytes() const {
    return index_->held_bytes() + static_cast<int64_t>(before_.size() * sizeof(int64_t));
}

BestFitSource::BestFitSource(std::vector<std::shared_ptr<const PackedWindows>> packings, uint64_t key)
    : packings_(std::move(packings)), key_(key) {
    for (const auto& packing : packings_) {
        if (packing->samples() == 0) throw FormatError("there are no tokens to make samples of");
    }
}

void BestFitSource::find(int64_t position, int64_t seq_len, std::vector<Stretch>& out) const {
    require_sample(position, seq_len);
    for (const auto& packing : packings_) {
        if (packing->seq_len() != seq_len) continue;
        const int64_t samples = packing->samples(), epoch = position / samples;
        const KeyedPermutation order(samples, derive_key({key_, static_cast<uint64_t>(epoch)}));
        return packing->find(order(position % samples), out);
    }
    throw std::out_of_range("the source is not packed for samples of " + std::to_string(seq_len) + " tokens");
}

int64_t BestFitSource::addressing_bytes() const {
    int64_t bytes = 0;
    for (const auto& packing : packings_) bytes += packing->held_bytes();
    return bytes;
}

}  // namespace mindllm
