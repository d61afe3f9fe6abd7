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
    std::vector<SampleAddress> addresses;
    int64_t tokens = 0;
    for (const int64_t sample : samples) {
        addresses.push_back(mixture_->locate(sample));
        tokens += addresses.back().seq_len;
    }
    if (out.room != tokens || out.room > std::numeric_limits<int32_t>::max()) {
        throw std::out_of_range("arrays of " + std::to_string(out.room) + " for " + std::to_string(tokens) + " tokens");
    }
    // While one sample is written, the tokens of the next are on their way from memory, and the lengths of the documents
    // that the one after it is found by.
    const auto prefetch = [&](size_t i) {
        if (i < addresses.size()) source(addresses[i].source).samples->prefetch(addresses[i].position);
    };
    std::vector<Stretch> current, following;
    if (!addresses.empty()) find_and_prefetch(addresses[0], current);
    prefetch(1);
    Progress done;
    for (size_t i = 0; i < addresses.size(); ++i) {
        prefetch(i + 2);
        following.clear();
        if (i + 1 < addresses.size()) find_and_prefetch(addresses[i + 1], following);
        write_sample(addresses[i], current, out, done);
        current.swap(following);
    }
    for (const int64_t source : done.sources) sources_[static_cast<size_t>(source)].bytes->check_end();
    out.cu_seqlens[done.borders] = static_cast<int32_t>(done.tokens);
    return done.borders + 1;
}

void BatchReader::find_and_prefetch(const SampleAddress& address, std::vector<Stretch>& out) const {
    const BatchSource& from = source(address.source);
    from.samples->find(address.position, address.seq_len, out);
    for (const Stretch& stretch : out) {
        from.bytes->prefetch(stretch.start * from.type.bytes, stretch.count * from.type.bytes);
    }
}

void BatchReader::write_sample(const SampleAddress& address, const std::vector<Stretch>& stretches,
                               const BatchArrays& out, Progress& done) const {
    const int64_t seq_len = address.seq_len, first = done.tokens;
    int64_t *tokens = out.tokens + first, *targets = out.targets + first;
    const int64_t last = read_tokens(source(address.source), stretches, seq_len, tokens);
    std::copy_n(tokens + 1, seq_len - 1, targets);
    targets[seq_len - 1] = last;
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

// Writes the first seq_len tokens of a sample, zeros where it has fewer, and returns the one after them: its last target.
int64_t BatchReader::read_tokens(const BatchSource& source, const std::vector<Stretch>& stretches, int64_t seq_len,
                                 int64_t* tokens) const {
    thread_local std::vector<unsigned char> bytes;
    int64_t filled = 0, last = 0;
    with_token_type(source.type.type, [&](auto zero) {
        using Token = decltype(zero);
        const auto size = static_cast<int64_t>(sizeof(Token));
        for (const Stretch& stretch : stretches) {
            if (stretch.count > seq_len + 1 - filled) throw std::logic_error("a sample is longer than its place");
            bytes.resize(static_cast<size_t>(stretch.count * size));
            source.bytes->read(stretch.start * size, stretch.count * size, bytes.data());
            const int64_t inside = std::min(stretch.count, seq_len - filled);
            if (!widen<Token>(bytes.data(), inside, vocab_size_, tokens + filled)) {
                refuse_id(source, stretch, tokens + filled, inside);
            }
            if (inside < stretch.count && !widen<Token>(bytes.data() + inside * size, 1, vocab_size_, &last)) {
                refuse_id(source, {stretch.document, stretch.in_document + inside, 0, 1}, &last, 1);
            }
            filled += stretch.count;
        }
    });
    std::fill(tokens + std::min(filled, seq_len), tokens + seq_len, 0);
    return last;
}

void BatchReader::refuse_id(const BatchSource& source, const Stretch& stretch, const int64_t* ids,
                            int64_t count) const {
    const int64_t* stray =
        std::find_if(ids, ids + count, [this](int64_t id) { return id < 0 || id >= vocab_size_; });
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
