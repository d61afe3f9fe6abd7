// Batches: find the stretches of each sample, read them, and write what a step needs beside the tokens.
#include "batch_reader.hpp"

#include <unistd.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <stdexcept>
#include <utility>

#include "errors.hpp"
#include "vectorised.hpp"

namespace mindllm {

namespace {

// Widens tokens to int64. False if an id is below 0 or at least `vocab_size`.
template <typename Token>
MINDLLM_VECTORISED bool widen(const unsigned char* from, int64_t count, int64_t vocab_size, int64_t* out) {
    uint64_t beyond = 0;  // its highest bit is set by such an id
    for (int64_t i = 0; i < count; ++i) {
        out[i] = load<Token>(from + i * static_cast<int64_t>(sizeof(Token)));
        const auto id = static_cast<uint64_t>(out[i]);
        beyond |= id | (static_cast<uint64_t>(vocab_size - 1) - id);
    }
    return beyond >> 63 == 0;
}

MINDLLM_VECTORISED void count_up(int64_t* out, int64_t count) {
    for (int64_t i = 0; i < count; ++i) out[i] = i;
}

MINDLLM_VECTORISED void fill(int64_t* out, int64_t count, int64_t value) {
    for (int64_t i = 0; i < count; ++i) out[i] = value;
}

}  // namespace

BatchReader::BatchReader(std::shared_ptr<const Mixture> mixture, std::vector<BatchSource> sources, int64_t vocab_size)
    : mixture_(std::move(mixture)), sources_(std::move(sources)), vocab_size_(vocab_size) {
    if (sources_.size() != mixture_->sources()) {
        throw std::out_of_range(std::to_string(sources_.size()) + " sources for a mixture of " +
                                std::to_string(mixture_->sources()));
    }
    if (vocab_size < 1) throw std::out_of_range("a vocabulary of " + std::to_string(vocab_size));
}

const BatchSource& BatchReader::source(int64_t id) const {
    const BatchSource& found = sources_[static_cast<size_t>(id)];
    if (!found.samples) throw std::out_of_range(found.prefix + ": there are no samples of this source");
    return found;
}

int64_t BatchReader::count_tokens(const std::vector<int64_t>& samples) const {
    int64_t tokens = 0;
    for (const int64_t sample : samples) tokens += mixture_->locate(sample).seq_len;
    return tokens;
}

int64_t BatchReader::find(int64_t sample, std::vector<Stretch>& out) const {
    const SampleAddress address = mixture_->locate(sample);
    source(address.source).samples->find(address.position, address.seq_len, out);
    return address.source;
}

int64_t BatchReader::read(const std::vector<int64_t>& samples, const BatchArrays& out) const {
    if (out.room != count_tokens(samples) || out.room > std::numeric_limits<int32_t>::max()) {
        throw std::out_of_range("arrays of " + std::to_string(out.room) + " for " +
                                std::to_string(count_tokens(samples)) + " tokens");
    }
    Progress done;
    for (const int64_t sample : samples) read_sample(sample, out, done);
    for (const int64_t source : done.sources) sources_[static_cast<size_t>(source)].bytes->check_end();
    out.cu_seqlens[done.borders] = static_cast<int32_t>(done.tokens);
    return done.borders + 1;
}

void BatchReader::read_sample(int64_t sample, const BatchArrays& out, Progress& done) const {
    thread_local std::vector<Stretch> stretches;
    thread_local std::vector<int64_t> row;  // one token more than the sample advances: its last target
    const SampleAddress address = mixture_->locate(sample);
    const BatchSource& from = source(address.source);
    const int64_t seq_len = address.seq_len;
    stretches.clear();
    from.samples->find(address.position, seq_len, stretches);
    int64_t found = 0;
    for (const Stretch& stretch : stretches) found += stretch.count;
    if (found > seq_len + 1) throw std::logic_error("a sample is longer than its place");
    row.resize(static_cast<size_t>(seq_len) + 1);
    std::fill(row.begin() + found, row.end(), 0);
    read_tokens(from, stretches, row.data());

    const int64_t first = done.tokens;
    int64_t* targets = out.targets + first;
    std::copy_n(row.data(), seq_len, out.tokens + first);
    std::copy_n(row.data() + 1, seq_len, targets);
    fill(out.source_ids + first, seq_len, address.source);
    // Each stretch is a document to itself, and so is the padding after the last.
    const auto open_document = [&](int64_t begin, int64_t end) {
        if (begin > 0) targets[begin - 1] = kIgnored;
        if (begin == seq_len) return;
        out.cu_seqlens[done.borders++] = static_cast<int32_t>(first + begin);
        count_up(out.positions + first + begin, std::min(end, seq_len) - begin);
    };
    int64_t filled = 0;
    for (const Stretch& stretch : stretches) {
        open_document(filled, filled + stretch.count);
        filled += stretch.count;
    }
    if (filled <= seq_len) {
        open_document(filled, seq_len);
        std::fill(targets + filled, targets + seq_len, kIgnored);
    }
    done.tokens += seq_len;
    if (std::find(done.sources.begin(), done.sources.end(), address.source) == done.sources.end()) {
        done.sources.push_back(address.source);
    }
}

void BatchReader::read_tokens(const BatchSource& source, const std::vector<Stretch>& stretches, int64_t* out) const {
    thread_local std::vector<unsigned char> bytes;
    with_token_type(source.type.type, [&](auto zero) {
        using Token = decltype(zero);
        const auto size = static_cast<int64_t>(sizeof(Token));
        for (const Stretch& stretch : stretches) source.bytes->prefetch(stretch.start * size, stretch.count * size);
        for (const Stretch& stretch : stretches) {
            bytes.resize(static_cast<size_t>(stretch.count * size));
            source.bytes->read(stretch.start * size, stretch.count * size, bytes.data());
            if (!widen<Token>(bytes.data(), stretch.count, vocab_size_, out)) refuse_id(source, stretch, out);
            out += stretch.count;
        }
    });
}

void BatchReader::refuse_id(const BatchSource& source, const Stretch& stretch, const int64_t* ids) const {
    const int64_t* stray =
        std::find_if(ids, ids + stretch.count, [this](int64_t id) { return id < 0 || id >= vocab_size_; });
    throw FormatError(source.prefix + ".bin",
                      "token id " + std::to_string(*stray) + " at position " +
                          std::to_string(stretch.in_document + (stray - ids)) + " of document " +
                          std::to_string(stretch.document) + " is outside the vocabulary of " +
                          std::to_string(vocab_size_));
}

ReadAhead::ReadAhead(std::shared_ptr<const BatchReader> reader, int threads)
    : reader_(std::move(reader)), owner_(::getpid()), queue_(std::make_unique<Queue>()) {
    if (threads < 1 || threads > kMaxThreads) {
        throw std::out_of_range(std::to_string(threads) + " threads; give 1 to " + std::to_string(kMaxThreads));
    }
    try {
        for (int i = 0; i < threads; ++i) queue_->threads.emplace_back(&ReadAhead::work, std::ref(*queue_));
    } catch (...) {
        stop();
        throw;
    }
}

ReadAhead::~ReadAhead() {
    if (::getpid() == owner_) {
        stop();
    } else {
        queue_.release();  // a lock in it may be held, and a thread waited for, by nobody
    }
}

void ReadAhead::stop() {
    {
        const std::lock_guard<std::mutex> lock(queue_->mutex);
        queue_->stopping = true;
        queue_->waiting.clear();
    }
    queue_->changed.notify_all();
    for (std::thread& thread : queue_->threads) thread.join();
}

std::future<int64_t> ReadAhead::submit(std::vector<int64_t> samples, BatchArrays out) {
    if (::getpid() != owner_) throw std::runtime_error("the threads that read ahead are not in this forked process");
    std::packaged_task<int64_t()> task(
        [reader = reader_, samples = std::move(samples), out] { return reader->read(samples, out); });
    std::future<int64_t> result = task.get_future();
    {
        const std::lock_guard<std::mutex> lock(queue_->mutex);
        queue_->waiting.push_back(std::move(task));
    }
    queue_->changed.notify_one();
    return result;
}

void ReadAhead::work(Queue& queue) {
    while (true) {
        std::packaged_task<int64_t()> task;
        {
            std::unique_lock<std::mutex> lock(queue.mutex);
            queue.changed.wait(lock, [&queue] { return queue.stopping || !queue.waiting.empty(); });
            if (queue.stopping) return;
            task = std::move(queue.waiting.front());
            queue.waiting.pop_front();
        }
        task();
    }
}

}  // namespace mindllm
