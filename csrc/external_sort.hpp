// Sorting more pairs of numbers than fit in memory: sorted runs on the disk, then one merge of all of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace mindllm {

// In searches for near-duplicates: a signature or a part of one, and the number of the document.
struct Entry {
    uint64_t key, value;
};

// Sorts by `key & mask`, and keeps the order of equal ones. `scratch` has room for as many. Linear time.
void radix_sort(Entry* entries, size_t count, uint64_t mask, Entry* scratch);

// A file without a name: it is gone with the process, whatever ends it. Every method throws IoError.
class TemporaryFile {
  public:
    explicit TemporaryFile(const std::string& folder);
    ~TemporaryFile();
    TemporaryFile(const TemporaryFile&) = delete;
    TemporaryFile& operator=(const TemporaryFile&) = delete;

    void append(const void* data, size_t bytes);
    void read(void* target, size_t bytes, uint64_t offset) const;
    void allocate(uint64_t bytes);  // zeros, with room on the disk for all of them
    int descriptor() const { return descriptor_; }
    uint64_t bytes() const { return bytes_; }

  private:
    const std::string folder_;  // which errors name
    int descriptor_;
    uint64_t bytes_ = 0;
};

// Entries in a temporary file, written and then read in order.
class EntryFile {
  public:
    explicit EntryFile(const std::string& folder) : file_(folder) {}
    void add(Entry entry);
    void finish();  // after the last `add`
    uint64_t count() const { return file_.bytes() / sizeof(Entry) + buffer_.size(); }
    // Calls `take(const Entry*, size_t)` for all of them in order, some at a time.
    template <typename Take>
    void read(Take take) const;

  private:
    TemporaryFile file_;
    std::vector<Entry> buffer_;
};

class ExternalSorter {
  public:
    // `expected`: entries at most, so that no more memory is taken than those need.
    ExternalSorter(uint64_t mask, size_t memory_bytes, uint64_t expected, const std::string& folder);
    void add(Entry entry);
    void sort();              // after the last `add`
    bool next(Entry& entry);  // in order of `key & mask`, equal ones as they were added; false at the end

  private:
    struct Run {
        uint64_t offset, end;  // of what is not in its buffer, in bytes of the file
        std::vector<Entry> buffer;
        size_t at = 0;
    };

    void sort_memory();
    void spill();
    void open_runs();
    bool refill(Run& run);
    void sink(size_t place);  // restores the heap below a place
    bool before(size_t run, size_t other) const;

    const uint64_t mask_;
    const size_t memory_bytes_;
    const std::string folder_;
    size_t capacity_;  // of `entries_`
    std::vector<Entry> entries_;
    size_t at_ = 0;
    std::unique_ptr<TemporaryFile> file_;  // none before the first spill
    std::vector<Run> runs_;
    std::vector<size_t> heap_;  // of runs that have entries
    size_t buffer_entries_ = 0;
};

template <typename Take>
void EntryFile::read(Take take) const {
    constexpr uint64_t AT_ONCE = 4096;
    std::vector<Entry> entries(AT_ONCE);
    const uint64_t total = file_.bytes() / sizeof(Entry);
    for (uint64_t first = 0; first < total; first += AT_ONCE) {
        const auto count = static_cast<size_t>(total - first < AT_ONCE ? total - first : AT_ONCE);
        file_.read(entries.data(), count * sizeof(Entry), first * sizeof(Entry));
        take(entries.data(), count);
    }
}

}  // namespace mindllm
