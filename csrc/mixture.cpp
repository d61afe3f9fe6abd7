// The three orders of a block, each O(log sources) or O(sources) for any sample, with nothing stored but cumulative counts.
#include "mixture.hpp"

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>

namespace mindllm {

namespace {

// The part of a cumulative count that a number falls into.
size_t part_of(const std::vector<int64_t>& ends, int64_t number) {
    return static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), number) - ends.begin());
}

int64_t start_of(const std::vector<int64_t>& ends, size_t part) { return part == 0 ? 0 : ends[part - 1]; }

// floor(a * b / c) for numbers beyond 2^32.
int64_t scaled(int64_t a, int64_t b, int64_t c) {
    return static_cast<int64_t>(static_cast<__int128>(a) * b / c);
}

void check(const BlockSpec& block, size_t sources) {
    const auto is_negative = [](int64_t number) { return number < 0; };
    const auto is_unknown = [sources](int64_t source) { return source < 0 || source >= static_cast<int64_t>(sources); };
    bool fits = block.quotas.size() == sources && block.firsts.size() == sources && block.seq_len > 0 &&
                block.samples_per_chunk > 0 &&
                std::none_of(block.quotas.begin(), block.quotas.end(), is_negative) &&
                std::none_of(block.firsts.begin(), block.firsts.end(), is_negative);
    std::vector<int> named(sources, 0);
    for (const auto& category : block.categories) {
        fits = fits && std::none_of(category.begin(), category.end(), is_unknown);
        if (fits) {
            for (const int64_t source : category) ++named[static_cast<size_t>(source)];
        }
    }
    if (block.order == Order::kBlocked) {
        for (size_t source = 0; fits && source < sources; ++source) fits = named[source] == 1;
    }
    if (!fits) throw std::out_of_range("a block does not fit its " + std::to_string(sources) + " sources");
}

}  // namespace

MixtureBlock::MixtureBlock(BlockSpec spec, const std::vector<uint64_t>& source_keys) : spec_(std::move(spec)) {
    check(spec_, source_keys.size());
    for (const int64_t quota : spec_.quotas) {
        if (__builtin_add_overflow(samples_, quota, &samples_)) throw std::out_of_range("a block of too many samples");
        ends_.push_back(samples_);
    }
    switch (spec_.order) {
        case Order::kShuffled: shuffles_.emplace_back(samples_, spec_.key); break;
        case Order::kBlocked:
            for (size_t source = 0; source < source_keys.size(); ++source) {
                shuffles_.emplace_back(spec_.quotas[source], derive_key({spec_.key, source_keys[source]}));
            }
            break;
        case Order::kChunked:
            int64_t chunks = 0, remainder = 0;
            for (const int64_t quota : spec_.quotas) {
                chunk_ends_.push_back(chunks += quota / spec_.samples_per_chunk);
                remainder_ends_.push_back(remainder += quota % spec_.samples_per_chunk);
            }
            shuffles_.emplace_back(chunks, spec_.key);
            shuffles_.emplace_back(remainder, derive_key({spec_.key, 1}));
            break;
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
    const size_t source = part_of(ends_, rank);
    return {static_cast<int64_t>(source), rank - start_of(ends_, source)};
}

// Category after category; the sources of one are spread evenly over its positions. Source by source, position j of
// the Q still open is the first source's, of quota q, iff floor((j + 1) q / Q) exceeds floor(j q / Q); the others close
// ranks.
MixtureBlock::Place MixtureBlock::blocked(int64_t position) const {
    for (const std::vector<int64_t>& category : spec_.categories) {
        int64_t open = 0;
        for (const int64_t source : category) open += spec_.quotas[static_cast<size_t>(source)];
        if (position >= open) {
            position -= open;
            continue;
        }
        for (const int64_t source : category) {
            const int64_t quota = spec_.quotas[static_cast<size_t>(source)];
            if (quota == 0) continue;
            const int64_t before = scaled(position, quota, open);
            if (scaled(position + 1, quota, open) > before) {
                return {source, shuffles_[static_cast<size_t>(source)](before)};
            }
            position -= before;
            open -= quota;
        }
    }
    throw std::logic_error("the categories of a block do not hold all its samples");
}

// Whole chunks in a keyed order, then what is left of each source, sample by sample in a keyed order.
MixtureBlock::Place MixtureBlock::chunked(int64_t position) const {
    const int64_t length = spec_.samples_per_chunk, in_chunks = shuffles_[0].size() * length;
    if (position < in_chunks) {
        const int64_t chunk = shuffles_[0](position / length);
        const size_t source = part_of(chunk_ends_, chunk);
        return {static_cast<int64_t>(source), (chunk - start_of(chunk_ends_, source)) * length + position % length};
    }
    const int64_t rank = shuffles_[1](position - in_chunks);
    const size_t source = part_of(remainder_ends_, rank);
    const int64_t whole = spec_.quotas[source] / length * length;
    return {static_cast<int64_t>(source), whole + rank - start_of(remainder_ends_, source)};
}

Mixture::Mixture(std::vector<BlockSpec> blocks, const std::vector<uint64_t>& source_keys, bool by_token)
    : sources_(source_keys.size()), by_token_(by_token) {
    for (BlockSpec& block : blocks) {
        if (block.first_sample != samples_) throw std::out_of_range("the blocks do not follow each other");
        blocks_.emplace_back(std::move(block), source_keys);
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
