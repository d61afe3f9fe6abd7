// The search among signatures in memory, and the same one on the disk where they do not fit.
#include "hamming_search.hpp"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "vectorised.hpp"

namespace mindllm {

namespace {

constexpr size_t COMPARE_ALL = 256;             // up to so many, pairs are compared at once
constexpr size_t LEAST_MEMORY = size_t{1} << 16;  // more entries than `distance_` bits can tell apart

// The first entry within the distance of a signature; `count` if there is none.
MINDLLM_VECTORISED
size_t find_close(const Entry* entries, size_t count, uint64_t signature, int distance) {
    size_t i = 0;
    while (i < count && __builtin_popcountll(entries[i].key ^ signature) > distance) ++i;
    return i;
}

// The bits set in `bits`, dealt out to blocks of neighbouring ones.
std::vector<uint64_t> blocks_of(uint64_t bits, size_t blocks) {
    std::vector<uint64_t> masks(blocks);
    const auto total = static_cast<size_t>(__builtin_popcountll(bits));
    for (size_t i = 0; i < total; ++i) {
        masks[i * blocks / total] |= bits & -bits;
        bits &= bits - 1;
    }
    return masks;
}

// Signatures that agree in a block: in memory up to a limit, on the disk from there.
class Group {
  public:
    Group(size_t memory_bytes, const std::string& folder)
        : limit_(memory_bytes / 2 / sizeof(Entry)), memory_bytes_(memory_bytes), folder_(folder) {}

    void add(Entry entry) {
        if (file_) {
            file_->add(entry);
            return;
        }
        entries_.push_back(entry);
        if (entries_.size() < limit_) return;
        file_ = std::make_unique<EntryFile>(folder_);
        for (const Entry& held : entries_) file_->add(held);
        std::vector<Entry>().swap(entries_);
    }

    void search_and_clear(HammingSearch& search) {
        if (file_) {
            std::vector<Entry>().swap(scratch_);
            file_->finish();
            search.search(*file_, memory_bytes_);
            file_.reset();
        } else if (entries_.size() > 1) {
            if (scratch_.size() < entries_.size()) scratch_.resize(entries_.capacity());
            search.search(entries_.data(), entries_.size(), scratch_.data());
        }
        entries_.clear();
    }

  private:
    const size_t limit_, memory_bytes_;
    const std::string& folder_;
    std::vector<Entry> entries_, scratch_;
    std::unique_ptr<EntryFile> file_;
};

}  // namespace

HammingSearch::HammingSearch(int distance, DocumentForest& forest, std::string folder)
    : distance_(distance), forest_(forest), folder_(std::move(folder)) {}

void HammingSearch::search(Entry* entries, size_t count, Entry* scratch) {
    if (count <= COMPARE_ALL) {
        compare_all(entries, count);
        return;
    }
    if (all_united(entries, count)) return;
    uint64_t varying = 0;
    for (size_t i = 1; i < count; ++i) varying |= entries[i].key ^ entries[0].key;
    for (const uint64_t block : blocks_of(varying, static_cast<size_t>(distance_) + 1)) {
        radix_sort(entries, count, block, scratch);
        for (size_t start = 0; start < count;) {
            const uint64_t value = entries[start].key & block;
            size_t end = start + 1;
            while (end < count && (entries[end].key & block) == value) ++end;
            if (end - start > 1) search(entries + start, end - start, scratch);
            start = end;
        }
    }
}

void HammingSearch::search(const EntryFile& entries, size_t memory_bytes) {
    memory_bytes = std::max(memory_bytes, LEAST_MEMORY);
    uint64_t first = 0, varying = 0, count = 0;
    entries.read([&](const Entry* some, size_t number) {
        if (count == 0) first = some[0].key;
        for (size_t i = 0; i < number; ++i) varying |= some[i].key ^ first;
        count += number;
    });
    if (count <= memory_bytes / 2 / sizeof(Entry)) {
        std::vector<Entry> all, scratch(count);
        all.reserve(count);
        entries.read([&all](const Entry* some, size_t number) { all.insert(all.end(), some, some + number); });
        search(all.data(), count, scratch.data());
        return;
    }
    for (const uint64_t block : blocks_of(varying, static_cast<size_t>(distance_) + 1)) {
        ExternalSorter sorter(block, memory_bytes / 2, count, folder_);
        entries.read([&sorter](const Entry* some, size_t number) {
            for (size_t i = 0; i < number; ++i) sorter.add(some[i]);
        });
        sorter.sort();
        Group group(memory_bytes / 2, folder_);
        uint64_t value = 0;
        for (Entry entry; sorter.next(entry);) {
            if ((entry.key & block) != value) group.search_and_clear(*this);
            value = entry.key & block;
            group.add(entry);
        }
        group.search_and_clear(*this);
    }
}

void HammingSearch::compare_all(const Entry* entries, size_t count) {
    for (size_t i = 0; i + 1 < count; ++i) {
        for (size_t j = i + 1;; ++j) {
            j += find_close(entries + j, count - j, entries[i].key, distance_);
            if (j == count) break;
            forest_.unite(entries[i].value, entries[j].value);
        }
    }
}

bool HammingSearch::all_united(const Entry* entries, size_t count) {
    const uint64_t root = forest_.root(entries[0].value);
    return std::all_of(entries + 1, entries + count, [&](const Entry& entry) { return forest_.root(entry.value) == root; });
}

}  // namespace mindllm
