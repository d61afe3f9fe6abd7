// Equal signatures first, so that thousands of copies count as one from there on; then near ones; then the files.
#include "near_duplicates.hpp"

#include <algorithm>
#include <cstring>
#include <memory>

#include "document_forest.hpp"
#include "external_sort.hpp"
#include "hamming_search.hpp"
#include "shingles.hpp"

namespace mindllm {

namespace {

constexpr size_t LEAST_MEMORY = size_t{1} << 16;
constexpr uint64_t ALL_BITS = ~uint64_t{0};
constexpr size_t COMPARED = 256;  // documents of a band's bucket that others are compared with

uint64_t simhash_of(const char* record) {
    uint64_t signature;
    std::memcpy(&signature, record, sizeof signature);
    return signature;
}

// Unites documents of equal signatures, and gives the first of each.
class Distinct {
  public:
    explicit Distinct(DocumentForest& forest) : forest_(forest) {}

    // In order of signatures, equal ones in order of documents. True if the signature is a new one.
    bool is_new(Entry entry) {
        if (any_ && entry.key == last_.key) {
            forest_.unite(last_.value, entry.value);
            return false;
        }
        any_ = true;
        last_ = entry;
        return true;
    }

  private:
    DocumentForest& forest_;
    bool any_ = false;
    Entry last_{};
};

void search_in_memory(const SignatureFiles& signatures, DocumentForest& forest, HammingSearch& search) {
    std::vector<Entry> entries, scratch(signatures.documents());
    entries.reserve(signatures.documents());
    signatures.read_all([&](uint64_t document, const char* record) { entries.push_back({simhash_of(record), document}); });
    radix_sort(entries.data(), entries.size(), ALL_BITS, scratch.data());
    Distinct distinct(forest);
    const auto repeated = [&](const Entry& entry) { return !distinct.is_new(entry); };
    entries.erase(std::remove_if(entries.begin(), entries.end(), repeated), entries.end());
    search.search(entries.data(), entries.size(), scratch.data());
}

void search_on_disk(const SignatureFiles& signatures, DocumentForest& forest, HammingSearch& search,
                    const std::string& folder, size_t memory_bytes) {
    EntryFile distinct_entries(folder);
    {
        ExternalSorter sorter(ALL_BITS, memory_bytes, signatures.documents(), folder);
        signatures.read_all([&](uint64_t document, const char* record) { sorter.add({simhash_of(record), document}); });
        sorter.sort();
        Distinct distinct(forest);
        for (Entry entry; sorter.next(entry);) {
            if (distinct.is_new(entry)) distinct_entries.add(entry);
        }
        distinct_entries.finish();
    }
    search.search(distinct_entries, memory_bytes);
}

size_t equal_values(const char* record, const char* other, size_t hashes) {
    size_t equal = 0;
    for (size_t i = 0; i < hashes; ++i) equal += std::memcmp(record + 4 * i, other + 4 * i, 4) == 0;
    return equal;
}

// Documents that agree in all of one band, one after the other: each is compared with those before it.
class Bucket {
  public:
    Bucket(const SignatureFiles& signatures, DocumentForest& forest, size_t hashes, size_t least_equal)
        : signatures_(signatures), forest_(forest), hashes_(hashes), least_equal_(least_equal) {}

    void add(Entry entry) {
        if (documents_.empty() || entry.key != key_) {
            key_ = entry.key;
            documents_.assign(1, entry.value);
            records_.clear();
            return;
        }
        // Most buckets have one document, whose record is never read.
        if (records_.empty()) read(documents_[0]);
        read(entry.value);
        const char* record = records_.data() + documents_.size() * signatures_.record_bytes();
        for (size_t i = 0; i < documents_.size(); ++i) {
            if (forest_.root(documents_[i]) == forest_.root(entry.value)) continue;
            const char* other = records_.data() + i * signatures_.record_bytes();
            if (equal_values(record, other, hashes_) >= least_equal_) forest_.unite(documents_[i], entry.value);
        }
        if (documents_.size() < COMPARED) {
            documents_.push_back(entry.value);
        } else {
            records_.resize(records_.size() - signatures_.record_bytes());
        }
    }

  private:
    void read(uint64_t document) {
        const size_t end = records_.size();
        records_.resize(end + signatures_.record_bytes());
        signatures_.read_record(document, records_.data() + end);
    }

    const SignatureFiles& signatures_;
    DocumentForest& forest_;
    const size_t hashes_, least_equal_;
    uint64_t key_ = 0;
    std::vector<uint64_t> documents_;
    std::vector<char> records_;  // theirs, and that of the document being compared
};

// Unites documents that agree in all values; true for those that have an earlier one.
std::vector<bool> unite_equal(const SignatureFiles& signatures, DocumentForest& forest, size_t hashes,
                              const std::string& folder, size_t memory_bytes) {
    ExternalSorter sorter(ALL_BITS, memory_bytes, signatures.documents(), folder);
    signatures.read_all([&](uint64_t document, const char* record) {
        sorter.add({hash_bytes({record, 4 * hashes}), document});
    });
    sorter.sort();
    Bucket bucket(signatures, forest, hashes, hashes);
    for (Entry entry; sorter.next(entry);) bucket.add(entry);
    std::vector<bool> repeated(signatures.documents());
    for (uint64_t document = 0; document < signatures.documents(); ++document) {
        repeated[document] = forest.root(document) != document;
    }
    return repeated;
}

DuplicateCounts write_duplicates(const SignatureFiles& signatures, DocumentForest& forest, bool simhash, size_t hashes,
                                 const std::string& folder) {
    DuplicateCounts counts;
    counts.documents = signatures.documents();
    std::vector<char> kept(signatures.record_bytes());
    for (size_t file = 0; file < signatures.files(); ++file) {
        StagedFile output(folder + "/" + std::to_string(file) + ".duplicates");
        signatures.read_file(file, [&](uint64_t document, const char* record) {
            const uint64_t root = forest.root(document);
            if (root == document) return;
            signatures.read_record(root, kept.data());
            const size_t kept_file = signatures.file_of(root);
            const bool exact = signatures.text_hash(record) == signatures.text_hash(kept.data());
            const auto distance = simhash
                ? static_cast<size_t>(__builtin_popcountll(simhash_of(record) ^ simhash_of(kept.data())))
                : hashes - equal_values(record, kept.data(), hashes);
            ++(exact ? counts.exact : counts.near);
            const Duplicate duplicate{static_cast<uint32_t>(document - signatures.first(file)),
                                      static_cast<uint32_t>(kept_file),
                                      static_cast<uint32_t>(root - signatures.first(kept_file)),
                                      exact ? EXACT_COPY : static_cast<uint32_t>(distance)};
            output.write(&duplicate, sizeof duplicate);
        });
        output.sync();
        output.commit();
    }
    sync_folder_of(folder + "/");
    return counts;
}

}  // namespace

DuplicateCounts find_simhash_duplicates(const SignatureFiles& signatures, int distance, const std::string& folder,
                                        size_t memory_bytes) {
    memory_bytes = std::max(memory_bytes, LEAST_MEMORY);
    DocumentForest forest(signatures.documents(), memory_bytes / 4, folder);
    HammingSearch search(distance, forest, folder);
    memory_bytes -= memory_bytes / 4;
    if (signatures.documents() <= memory_bytes / 2 / sizeof(Entry)) {
        search_in_memory(signatures, forest, search);
    } else {
        search_on_disk(signatures, forest, search, folder, memory_bytes);
    }
    return write_duplicates(signatures, forest, true, 0, folder);
}

DuplicateCounts find_minhash_duplicates(const SignatureFiles& signatures, size_t hashes, size_t bands,
                                        size_t least_equal, const std::string& folder, size_t memory_bytes) {
    memory_bytes = std::max(memory_bytes, LEAST_MEMORY);
    DocumentForest forest(signatures.documents(), memory_bytes / 4, folder);
    memory_bytes -= memory_bytes / 4;
    const std::vector<bool> repeated = unite_equal(signatures, forest, hashes, folder, memory_bytes);
    const size_t band_bytes = 4 * (hashes / bands);
    std::vector<std::unique_ptr<ExternalSorter>> sorters;
    for (size_t band = 0; band < bands; ++band) {
        sorters.push_back(
            std::make_unique<ExternalSorter>(ALL_BITS, memory_bytes / bands, signatures.documents(), folder));
    }
    signatures.read_all([&](uint64_t document, const char* record) {
        if (repeated[document]) return;
        for (size_t band = 0; band < bands; ++band) {
            sorters[band]->add({hash_bytes({record + band * band_bytes, band_bytes}), document});
        }
    });
    for (std::unique_ptr<ExternalSorter>& sorter : sorters) {
        sorter->sort();
        Bucket bucket(signatures, forest, hashes, least_equal);
        for (Entry entry; sorter->next(entry);) bucket.add(entry);
        sorter.reset();
    }
    return write_duplicates(signatures, forest, false, hashes, folder);
}

}  // namespace mindllm
