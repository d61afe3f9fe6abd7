// Radix sort in memory; runs and their merge, by a heap, on the disk.
#include "external_sort.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <numeric>

#include "errors.hpp"

namespace mindllm {

namespace {

constexpr size_t BUFFER_ENTRIES = 4096;   // of a file that is written
constexpr size_t LEAST_RUN_BUFFER = 256;  // entries: 4 KiB

}  // namespace

void radix_sort(Entry* entries, size_t count, uint64_t mask, Entry* scratch) {
    Entry* from = entries;
    Entry* to = scratch;
    for (int shift = 0; shift < 64; shift += 8) {
        const uint64_t digit_mask = mask >> shift & 0xFF;
        if (digit_mask == 0) continue;
        std::array<size_t, 256> places{};
        for (size_t i = 0; i < count; ++i) ++places[from[i].key >> shift & digit_mask];
        if (std::find(places.begin(), places.end(), count) != places.end()) continue;  // all alike
        std::exclusive_scan(places.begin(), places.end(), places.begin(), size_t{0});
        for (size_t i = 0; i < count; ++i) to[places[from[i].key >> shift & digit_mask]++] = from[i];
        std::swap(from, to);
    }
    if (from != entries) std::copy_n(from, count, entries);
}

TemporaryFile::TemporaryFile(const std::string& folder) : folder_(folder) {
    std::string name = folder + "/.spill.XXXXXX";
    descriptor_ = ::mkostemp(name.data(), O_CLOEXEC);
    if (descriptor_ < 0) throw IoError(errno, folder);
    ::unlink(name.c_str());
}

TemporaryFile::~TemporaryFile() { ::close(descriptor_); }

void TemporaryFile::append(const void* data, size_t bytes) {
    const auto* source = static_cast<const unsigned char*>(data);
    while (bytes > 0) {
        const ssize_t written = ::pwrite(descriptor_, source, bytes, static_cast<off_t>(bytes_));
        if (written < 0) {
            if (errno == EINTR) continue;
            throw IoError(errno, folder_);
        }
        source += written;
        bytes -= static_cast<size_t>(written);
        bytes_ += static_cast<uint64_t>(written);
    }
}

void TemporaryFile::read(void* target, size_t bytes, uint64_t offset) const {
    auto* out = static_cast<unsigned char*>(target);
    while (bytes > 0) {
        const ssize_t got = ::pread(descriptor_, out, bytes, static_cast<off_t>(offset));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) throw IoError(got < 0 ? errno : EIO, folder_);
        out += got;
        offset += static_cast<uint64_t>(got);
        bytes -= static_cast<size_t>(got);
    }
}

void TemporaryFile::allocate(uint64_t bytes) {
    const int error = ::posix_fallocate(descriptor_, 0, static_cast<off_t>(bytes));
    if (error != 0) throw IoError(error, folder_);
    bytes_ = bytes;
}

void EntryFile::add(Entry entry) {
    buffer_.push_back(entry);
    if (buffer_.size() == BUFFER_ENTRIES) finish();
}

void EntryFile::finish() {
    file_.append(buffer_.data(), buffer_.size() * sizeof(Entry));
    buffer_.clear();
}

ExternalSorter::ExternalSorter(uint64_t mask, size_t memory_bytes, uint64_t expected, const std::string& folder)
    : mask_(mask),
      memory_bytes_(memory_bytes),
      folder_(folder),
      // Half of the memory is the scratch of the sort.
      capacity_(static_cast<size_t>(std::min<uint64_t>(std::max<uint64_t>(expected, 1),
                                                       std::max<size_t>(memory_bytes / 2 / sizeof(Entry), 1)))) {
    entries_.reserve(capacity_);
}

void ExternalSorter::add(Entry entry) {
    if (entries_.size() == capacity_) spill();
    entries_.push_back(entry);
}

void ExternalSorter::sort_memory() {
    std::vector<Entry> scratch(entries_.size());
    radix_sort(entries_.data(), entries_.size(), mask_, scratch.data());
}

void ExternalSorter::spill() {
    sort_memory();
    if (!file_) file_ = std::make_unique<TemporaryFile>(folder_);
    const uint64_t offset = file_->bytes();
    file_->append(entries_.data(), entries_.size() * sizeof(Entry));
    runs_.push_back({offset, file_->bytes(), {}, 0});
    entries_.clear();
}

void ExternalSorter::sort() {
    if (runs_.empty()) {
        sort_memory();
        return;
    }
    if (!entries_.empty()) spill();
    std::vector<Entry>().swap(entries_);
    open_runs();
}

void ExternalSorter::open_runs() {
    buffer_entries_ = std::max(memory_bytes_ / sizeof(Entry) / runs_.size(), LEAST_RUN_BUFFER);
    for (size_t run = 0; run < runs_.size(); ++run) {
        refill(runs_[run]);  // no run is empty
        heap_.push_back(run);
    }
    for (size_t place = heap_.size(); place-- > 0;) sink(place);
}

bool ExternalSorter::refill(Run& run) {
    const uint64_t left = (run.end - run.offset) / sizeof(Entry);
    const auto count = static_cast<size_t>(std::min<uint64_t>(left, buffer_entries_));
    run.buffer.resize(count);
    run.at = 0;
    file_->read(run.buffer.data(), count * sizeof(Entry), run.offset);
    run.offset += count * sizeof(Entry);
    return count > 0;
}

bool ExternalSorter::before(size_t run, size_t other) const {
    const uint64_t key = runs_[run].buffer[runs_[run].at].key & mask_;
    const uint64_t other_key = runs_[other].buffer[runs_[other].at].key & mask_;
    return key != other_key ? key < other_key : run < other;
}

void ExternalSorter::sink(size_t place) {
    while (true) {
        size_t least = place;
        for (size_t child = 2 * place + 1; child <= 2 * place + 2 && child < heap_.size(); ++child) {
            if (before(heap_[child], heap_[least])) least = child;
        }
        if (least == place) return;
        std::swap(heap_[place], heap_[least]);
        place = least;
    }
}

bool ExternalSorter::next(Entry& entry) {
    if (runs_.empty()) {
        if (at_ == entries_.size()) return false;
        entry = entries_[at_++];
        return true;
    }
    if (heap_.empty()) return false;
    Run& run = runs_[heap_[0]];
    entry = run.buffer[run.at++];
    if (run.at == run.buffer.size() && !refill(run)) {
        heap_[0] = heap_.back();
        heap_.pop_back();
    }
    sink(0);
    return true;
}

}  // namespace mindllm
