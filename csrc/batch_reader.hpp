// Whole micro-batches from a plan and its sources: tokens, targets, positions, document borders, written to arrays that
// the caller owns (pinned memory, on a GPU machine), at once or ahead of need by threads.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "mixture.hpp"
#include "sample_source.hpp"
#include "token_bytes.hpp"
#include "token_format.hpp"

namespace mindllm {

// The target of a position whose next token belongs to another document, or to none; losses leave it out.
constexpr int64_t kIgnored = -100;

// A source: where its tokens are, and where its samples lie in them.
struct BatchSource {
    std::string prefix;
    TokenTypeInfo type;
    std::shared_ptr<const TokenBytes> bytes;
    std::shared_ptr<const SampleSource> samples;  // null if no sample of it is read
};

// Where a batch is written: `room` numbers each, room + 1 of cu_seqlens.
struct BatchArrays {
    int64_t *tokens, *targets, *positions, *source_ids;
    int32_t* cu_seqlens;
    int64_t room;
};

// Immutable, so safe to share among threads.
class BatchReader {
  public:
    // The sources in the order that gives them their ids in the mixture and in batches. Token ids that are read must lie in
    // [0, vocab_size). std::out_of_range for another number of sources than the mixture's, or a vocabulary of none.
    BatchReader(std::shared_ptr<const Mixture> mixture, std::vector<BatchSource> sources, int64_t vocab_size);

    // The tokens of a batch of these global samples, each of its block's seq_len.
    int64_t count_tokens(const std::vector<int64_t>& samples) const;

    // Writes the samples one after the other; returns how many numbers of cu_seqlens it wrote. Throws std::out_of_range
    // for a sample that is not in the plan or a `room` that is not count_tokens(samples), FormatError for damaged files
    // and ids outside the vocabulary, IoError, MissingChunk.
    int64_t read(const std::vector<int64_t>& samples, const BatchArrays& out) const;

    // The stretches of one global sample, appended to `out`; returns its source.
    int64_t find(int64_t sample, std::vector<Stretch>& out) const;

  private:
    // std::out_of_range for a source whose samples are not there.
    const BatchSource& source(int64_t id) const;
    // A part of a batch: the samples written so far take `tokens` of its places and `borders` numbers of cu_seqlens, and
    // come from `sources`.
    struct Progress {
        int64_t tokens = 0, borders = 0;
        std::vector<int64_t> sources;
    };
    void find_and_prefetch(const SampleAddress& address, std::vector<Stretch>& out) const;
    void write_sample(const SampleAddress& address, const std::vector<Stretch>& stretches, const BatchArrays& out,
                      Progress& done) const;
    int64_t read_tokens(const BatchSource& source, const std::vector<Stretch>& stretches, int64_t seq_len,
                        int64_t* tokens) const;
    [[noreturn]] void refuse_id(const BatchSource& source, const Stretch& stretch, const int64_t* ids,
                                int64_t count) const;

    const std::shared_ptr<const Mixture> mixture_;
    const std::vector<BatchSource> sources_;
    const int64_t vocab_size_;
};

// Threads that read batches before they are needed. Batches are finished in any order.
class ReadAhead {
  public:
    static constexpr int kMaxThreads = 1024;

    // std::out_of_range for a number of threads outside [1, kMaxThreads], std::system_error if the system has no more.
    ReadAhead(std::shared_ptr<const BatchReader> reader, int threads);
    // Waits for the batches under way; those not begun are never read, and their futures throw. In a forked child, which
    // has none of the threads, it leaves everything as it is.
    ~ReadAhead();
    ReadAhead(const ReadAhead&) = delete;
    ReadAhead& operator=(const ReadAhead&) = delete;

    // As BatchReader::read, later: the arrays must stay until the future is ready. std::runtime_error in a forked child.
    std::future<int64_t> submit(std::vector<int64_t> samples, BatchArrays out);

  private:
    // What the threads share.
    struct Queue {
        std::mutex mutex;
        std::condition_variable changed;
        std::deque<std::packaged_task<int64_t()>> waiting;
        bool stopping = false;
        std::vector<std::thread> threads;
    };
    static void work(Queue& queue);
    void stop();

    const std::shared_ptr<const BatchReader> reader_;
    const pid_t owner_;
    std::unique_ptr<Queue> queue_;
};

}  // namespace mindllm
