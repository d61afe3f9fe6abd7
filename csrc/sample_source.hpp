// The samples of one source: which stretches of which documents make up the sample at a position.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "document_index.hpp"
#include "packing.hpp"
#include "permutation.hpp"

namespace mindllm {

// Tokens [start, start + count) of a source's stream, all of one document.
struct Stretch {
    int64_t document;
    int64_t in_document;  // where in the document it starts
    int64_t start;
    int64_t count;
};

// Thread-safe.
class SampleSource {
  public:
    // No sample is longer, so that a wild number asks for no more memory and time than that takes.
    static constexpr int64_t kMaxSeqLen = BestFitPacker::kMaxCapacity - 1;

    virtual ~SampleSource() = default;
    // Appends the stretches of the sample at `position`, of at most seq_len + 1 tokens, none of them empty.
    // std::out_of_range for a position below 0 or too close to the end of int64, or a seq_len outside [1, kMaxSeqLen];
    // FormatError for a file that is damaged, or is not what it was.
    virtual void find(int64_t position, int64_t seq_len, std::vector<Stretch>& out) const = 0;
    // Starts to bring what `find` will read for this position into the cache of the processor, where that is cheap.
    virtual void prefetch(int64_t) const {}
    // Memory held to find them.
    virtual int64_t addressing_bytes() const = 0;

  protected:
    static void require_sample(int64_t position, int64_t seq_len);
};

// A source as an endless stream: epoch after epoch, each with its documents in an order of its own. The sample at
// position p is the stream's tokens [p, p + seq_len + 1).
//
// The order is that of groups of `kGroup` neighbouring documents (a keyed permutation), and of the documents in each (a
// keyed shuffle). So only the borders of groups have to be known, and a sample's documents lie near each other on the
// disk; the samples of a block are shuffled again among each other (mixture.hpp).
class ContiguousSource : public SampleSource {
  public:
    static constexpr int64_t kGroup = 512;

    // An index in groups of `kGroup`. FormatError if it has no tokens.
    ContiguousSource(std::shared_ptr<const DocumentIndex> index, uint64_t key);

    // FormatError too if the sample would hold `kMaxEpochs` of the source.
    void find(int64_t position, int64_t seq_len, std::vector<Stretch>& out) const override;
    void prefetch(int64_t position) const override;
    int64_t addressing_bytes() const override;

  private:
    // The order of one epoch: a permutation of the groups, and the tokens before every kStride-th group in it.
    struct Epoch {
        uint64_t key;
        KeyedPermutation order;
        std::vector<int64_t> before;
    };
    static constexpr int64_t kStride = 32;
    static constexpr size_t kEpochsKept = 64;
    static constexpr int64_t kMaxEpochs = 1 << 16;

    std::shared_ptr<const Epoch> epoch(int64_t number) const;
    std::shared_ptr<const Epoch> make_epoch(int64_t number) const;
    int64_t seek(const Epoch& epoch, int64_t& offset) const;
    void find_in_epoch(int64_t number, int64_t offset, int64_t count, std::vector<Stretch>& out) const;
    void find_in_group(const Epoch& epoch, int64_t group, int64_t& offset, int64_t& count,
                       std::vector<Stretch>& out) const;

    const std::shared_ptr<const DocumentIndex> index_;
    const uint64_t key_;
    mutable std::mutex mutex_;
    mutable std::map<int64_t, std::shared_ptr<const Epoch>> epochs_;
};

// The documents of a source packed into samples of seq_len + 1 tokens, best fit (packing.hpp), window after window of
// `kWindow` neighbouring documents. Only the number of samples before each window is kept; a window is packed anew
// whenever a sample of it is read. Immutable and thread-safe.
class PackedWindows {
  public:
    static constexpr int64_t kWindow = 4096;

    // Counts the samples of every window of the index, which is in groups of `kWindow`. FormatError for a damaged index,
    // or a seq_len that no SampleSource has.
    PackedWindows(std::shared_ptr<const DocumentIndex> index, int64_t seq_len);

    int64_t seq_len() const { return seq_len_; }
    int64_t samples() const { return before_.back(); }
    // The stretches of a sample, 0 <= sample < samples(), appended to `out`. FormatError if the file is not what it was.
    void find(int64_t sample, std::vector<Stretch>& out) const;
    int64_t held_bytes() const;

  private:
    const std::shared_ptr<const DocumentIndex> index_;
    const int64_t seq_len_;
    std::vector<int64_t> before_;  // the samples before each window, and all of them
};

// A source in samples of whole documents. Sample number p is one of epoch p / samples, where the samples are in a keyed
// order; what is packed together is the same in every epoch, which attention within documents cannot see.
class BestFitSource : public SampleSource {
  public:
    // One packing for each seq_len that will be asked for. FormatError for one without samples.
    BestFitSource(std::vector<std::shared_ptr<const PackedWindows>> packings, uint64_t key);

    // std::out_of_range for a seq_len without a packing.
    void find(int64_t position, int64_t seq_len, std::vector<Stretch>& out) const override;
    int64_t addressing_bytes() const override;

  private:
    const std::vector<std::shared_ptr<const PackedWindows>> packings_;
    const uint64_t key_;
};

}  // namespace mindllm
