// Which source, and where in it, is global sample g: the arithmetic of a plan's blocks (data/plan.py lays them out).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "permutation.hpp"

namespace mindllm {

enum class Order { kShuffled, kBlocked, kChunked };

// One block of a plan; mindllm_engine.data.mixture.Block says what each number means.
struct BlockSpec {
    int64_t first_sample;  // number of its first global sample
    int64_t seq_len;       // tokens a sample advances, at most SampleSource::kMaxSeqLen
    Order order;
    int64_t samples_per_chunk;  // of kChunked: samples of one source in a row
    uint64_t key;               // names the block's permutations
    std::vector<int64_t> quotas;  // samples of each source
    std::vector<int64_t> firsts;  // where the block's share of each source starts in that source
    // The sources with a quota in the order in which they are laid out; kBlocked goes from category to category.
    std::vector<std::vector<int64_t>> categories;
};

// Where a global sample is found.
struct SampleAddress {
    int64_t source;
    int64_t position;  // in the source: a token of its endless stream, or the number of a packed sample
    int64_t seq_len;
};

// A block with its cumulative counts. Its positions are numbered from 0.
class MixtureBlock {
  public:
    // `spec` has been checked.
    explicit MixtureBlock(BlockSpec spec);

    int64_t samples() const { return samples_; }
    int64_t first_sample() const { return spec_.first_sample; }
    int64_t seq_len() const { return spec_.seq_len; }
    int64_t first(int64_t source) const { return spec_.firsts[static_cast<size_t>(source)]; }

    // The source of a position, and which of the block's samples of that source it is.
    struct Place {
        int64_t source, count;
    };
    Place place(int64_t position) const;

  private:
    Place shuffled(int64_t position) const;
    Place blocked(int64_t position) const;
    Place chunked(int64_t position) const;

    int64_t quota(int64_t source) const { return spec_.quotas[static_cast<size_t>(source)]; }

    BlockSpec spec_;
    int64_t samples_ = 0;
    std::vector<int64_t> members_;            // the sources with a quota
    std::vector<int64_t> ends_;               // shuffled: their cumulative quotas; chunked: their whole chunks
    std::vector<int64_t> remainder_ends_;     // chunked: the samples beyond whole chunks, cumulative
    std::vector<KeyedPermutation> shuffles_;  // shuffled: of the block; blocked: of each source; chunked: chunks, rest
};

// The blocks of a plan. Immutable, so safe to share among threads.
class Mixture {
  public:
    // `by_token`: a source is addressed by token (contiguous), not by the number of a sample (best fit).
    // std::out_of_range for blocks that do not follow each other from sample 0, do not fit the sources, or reach positions
    // beyond int64.
    Mixture(std::vector<BlockSpec> blocks, size_t sources, bool by_token);

    int64_t samples() const { return samples_; }
    size_t sources() const { return sources_; }
    // std::out_of_range unless 0 <= sample < samples().
    SampleAddress locate(int64_t sample) const;

  private:
    const MixtureBlock& block_of(int64_t sample) const;

    std::vector<MixtureBlock> blocks_;
    int64_t samples_ = 0;
    const size_t sources_;
    const bool by_token_;
};

}  // namespace mindllm
