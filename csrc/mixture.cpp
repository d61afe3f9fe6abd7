// The three orders of a block, each O(log sources) or O(sources) for any sample, with nothing stored but cumulative counts.
#include "mixture.hpp"

#include <algorithm>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "sample_source.hpp"

namespace mindllm {

namespace {

// The part of a cumulative count that a number falls into.
size_t part_of(const std::vector<int64_t>& ends, int64_t number) {
    return static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), number) - ends.begin());
}

int64_t start_of(const std::vector<int64_t>& ends, size_t part) { return part == 0 ? 0 : ends[part - 1]; }

// a * b / c, rounded to the nearest; the product may outgrow 64 bits.
int64_t scaled(int64_t a, int64_t b, int64_t c) {
    return static_cast<int64_t>((static_cast<__int128>(a) * b + c / 2) / c);
}

bool fits(const BlockSpec& block, size_t sources) {
    const auto is_negative = [](int64_t number) { return number < 0; };
    const bool is_known = block.order == Order::kShuffled || block.order == Order::kBlocked || block.order == Order::kChunked;
    if (!is_known || block.quotas.size() != sources || block.firsts.size() != sources || block.seq_len < 1 ||
        block.seq_len > SampleSource::kMaxSeqLen || block.samples_per_chunk < 1 || std::any_of(block.quotas.begin(), block.quotas.end(), is_negative) ||
        std::any_of(block.firsts.begin(), block.firsts.end(), is_negative)) {
        return false;
    }
    std::vector<int> times(sources, 0);
    for (const auto& category : block.categories) {
        for (const int64_t source : category) {
            if (source < 0 || source >= static_cast<int64_t>(sources)) return false;
            ++times[static_cast<size_t>(source)];
        }
    }
    for (size_t source = 0; source < sources; ++source) {
        if (times[source] != (block.quotas[source] > 0 ? 1 : 0)) return false;
    }
    return true;
}

// Whether a position in a source is counted by int64, and the end of the last sample too.
bool is_within_counting(const BlockSpec& block, bool by_token) {
    const int64_t advance = by_token ? block.seq_len : 1;
    for (size_t source = 0; source < block.quotas.size(); ++source) {
        const __int128 end = static_cast<__int128>(block.quotas[source]) * advance + block.firsts[source];
        if (end + block.seq_len + 1 > std::numeric_limits<int64_t>::max()) return false;
    }
    return true;
}

}  // namespace

MixtureBlock::MixtureBlock(BlockSpec spec) : spec_(std::move(spec)) {
    for (const auto& category : spec_.categories) members_.insert(members_.end(), category.begin(), category.end());
    for (const int64_t source : members_) {
        if (__builtin_add_overflow(samples_, quota(source), &samples_)) {
            throw std::out_of_range("a block of too many samples");
        }
        if (spec_.order == Order::kShuffled) ends_.push_back(samples_);
    }
    if (spec_.order == Order::kShuffled) {
        shuffles_.emplace_back(samples_, spec_.key);
    } else if (spec_.order == Order::kBlocked) {
        for (const int64_t quota : spec_.quotas) shuffles_.emplace_back(quota, spec_.key);
    } else {
        int64_t chunks = 0, remainder = 0;
        for (const int64_t source : members_) {
            ends_.push_back(chunks += quota(source) / spec_.samples_per_chunk);
            remainder_ends_.push_back(remainder += quota(source) % spec_.samples_per_chunk);
        }
        shuffles_.emplace_back(chunks, spec_.key);
        shuffles_.emplace_back(remainder, spec_.key);
    }
}

MixtureBlock::Place MixtureBlock::place(int64_t position) const {
    switch (spec_.order) {
        case Order::kBlocked: return blocked(position);
        case Order::kChunked: return chunked(position);
        case Order::kShuffled: break;
    }
    return shuffled(position);
}

MixtureBlock::Place MixtureBlock::shuffled(int64_t position) const {
    const int64_t rank = shuffles_[0](position);
    const size_t part = part_of(ends_, rank);
    return {members_[part], rank - start_of(ends_, part)};
}

// Category after category, the sources of one spread evenly over its positions: of the first j of Q positions, the first
// source of quota q has round(j q / Q), and the others share what it leaves in the same way.
MixtureBlock::Place MixtureBlock::blocked(int64_t position) const {
    for (const std::vector<int64_t>& category : spec_.categories) {
        int64_t open = 0;
        for (const int64_t source : category) open += quota(source);
        if (position >= open) {
            position -= open;
            continue;
        }
        for (const int64_t source : category) {
            const int64_t before = scaled(position, quota(source), open);
            if (scaled(position + 1, quota(source), open) > before) {
                return {source, shuffles_[static_cast<size_t>(source)](before)};
            }
            position -= before;
            open -= quota(source);
        }
    }
    throw std::logic_error("the categories of a block do not hold all its samples");
}

// Whole chunks in a keyed order, then what is left of each source, sample by sample in a keyed order.
MixtureBlock::Place MixtureBlock::chunked(int64_t position) const {
    const int64_t length = spec_.samples_per_chunk, in_chunks = shuffles_[0].size() * length;
    if (position < in_chunks) {
        const int64_t chunk = shuffles_[0](position / length);
        const size_t part = part_of(ends_, chunk);
        return {members_[part], (chunk - start_of(ends_, part)) * length + position % length};
    }
    const int64_t rank = shuffles_[1](position - in_chunks);
    const size_t part = part_of(remainder_ends_, rank);
    const int64_t in_whole_chunks = quota(members_[part]) / length * length;
    return {members_[part], in_whole_chunks + rank - start_of(remainder_ends_, part)};
}

Mixture::Mixture(std::vector<BlockSpec> blocks, size_t sources, bool by_token)
    : sources_(sources), by_token_(by_token) {
    for (BlockSpec& block : blocks) {
        if (block.first_sample != samples_) throw std::out_of_range("the blocks do not follow each other");
        if (!fits(block, sources)) {
            throw std::out_of_range("a block does not fit its " + std::to_string(sources) + " sources");
        }
        if (!is_within_counting(block, by_token)) throw std::out_of_range("a block that ends beyond counting");
        blocks_.emplace_back(std::move(block));
        if (__builtin_add_overflow(samples_, blocks_.back().samples(), &samples_)) {
            throw std::out_of_range("a plan of too many samples");
        }
    }
}

SampleAddress Mixture::locate(int64_t sample) const {
    const MixtureBlock& block = block_of(sample);
    const MixtureBlock::Place place = block.place(sample - block.first_sample());
    const int64_t advance = by_token_ ? block.seq_len() : 1;
    return {place.source, block.first(place.source) + place.count * advance, block.seq_len()};
}

const MixtureBlock& Mixture::block_of(int64_t sample) const {
    if (sample < 0 || sample >= samples_) {
        throw std::out_of_range("there is no sample " + std::to_string(sample) + " among " + std::to_string(samples_));
    }
    const auto after = std::upper_bound(blocks_.begin(), blocks_.end(), sample, [](int64_t number, const auto& block) {
        return number < block.first_sample();
    });
    return *std::prev(after);
}

}  // namespace mindllm
