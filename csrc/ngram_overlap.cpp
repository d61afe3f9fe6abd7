// Hashes of n-grams in one sorted array, behind a Bloom filter of their last words: of an ordinary document nearly
// every place costs one look at that.
#include "ngram_overlap.hpp"

#include <algorithm>
#include <tuple>
#include <utility>

#include "errors.hpp"
#include "hash_table.hpp"
#include "words.hpp"

namespace mindllm {

namespace {

constexpr uint64_t BASE = 0x9E3779B97F4A7C15u;

// A letter or digit beyond ASCII: lower case in Latin, Greek and Cyrillic; ASCII for full-width.
uint32_t folded(uint32_t c) {
    if (c >= 0xFF01 && c <= 0xFF5E) c -= 0xFEE0;
    if (c < 0x80) return c | 0x20;
    if ((c >= 0xC0 && c <= 0xDE) || (c >= 0x391 && c <= 0x3A9) || (c >= 0x410 && c <= 0x42F)) return c + 32;
    if (c >= 0x400 && c <= 0x40F) return c + 80;
    return c >= 0x100 && c <= 0x137 ? c | 1 : c;
}

// Calls `call(hash, word)` for each word that counts.
template <typename Call>
void for_each_normal_word(std::string_view text, Call call) {
    for_each_word(text, [&](const Word& word) {
        if (word.kind == CharacterKind::other) return;
        uint64_t hash = 0;
        uint32_t character = 0;
        for (size_t at = word.begin; at < word.end;) {
            const auto byte = static_cast<uint8_t>(text[at]);
            if (byte < 0x80) {
                character = byte | 0x20;  // words have no signs but the underscore: lower case
                ++at;
            } else {
                character = folded(next_character(text, at));
            }
            hash = (hash + character) * 0xD6E8FEB86659FD93u;
        }
        if (word.chars == 1 && character >= 'a' && character <= 'z') return;
        call(mix(hash), word);
    });
}

uint64_t with_length(uint64_t hash, size_t n) { return mix(hash ^ n * 0xD1B54A32D192ED03u); }

}  // namespace

OverlapIndex::OverlapIndex(const OverlapRules& rules) : rules_(rules), powers_(MAX_N + 1, 1) {
    if (rules.min_words < 1 || rules.min_chars < 1 || rules.max_items < 1) {
        throw FormatError("the rules of an overlap are at least 1");
    }
    if (rules.min_words > rules.words_n || rules.min_chars > rules.chars_n) {
        throw FormatError("the least length of an item is above that of an n-gram");
    }
    if (rules.words_n > MAX_N || rules.chars_n > MAX_N) throw FormatError("an n-gram has more than 256 words");
    seed_ = std::min(rules.min_words, rules.min_chars);
    for (size_t i = 1; i <= MAX_N; ++i) powers_[i] = powers_[i - 1] * BASE;
}

void OverlapIndex::add(std::string_view text) {
    if (finished_) throw FormatError("an item was added to a finished index");
    std::vector<uint64_t> sums{0};
    size_t ideographs = 0;
    for_each_normal_word(text, [&](uint64_t hash, const Word& word) {
        sums.push_back(sums.back() * BASE + hash);
        ideographs += word.kind == CharacterKind::ideograph;
    });
    const size_t words = sums.size() - 1;
    const bool by_characters = 2 * ideographs > words;
    const size_t n = std::min(by_characters ? rules_.chars_n : rules_.words_n, words);
    const auto number = static_cast<uint32_t>(items_.size());
    items_.push_back({static_cast<uint32_t>(n), 0});
    if (n < (by_characters ? rules_.min_chars : rules_.min_words)) {
        ++short_items_;
        return;
    }
    for (size_t end = n; end <= words; ++end) {
        const auto window = [&](size_t length) { return sums[end] - sums[end - length] * powers_[length]; };
        n_grams_.push_back({with_length(window(n), n), number, static_cast<uint32_t>(end - n)});
        seeds_.push_back(mix(window(seed_)));
    }
    if (std::find(lengths_.begin(), lengths_.end(), n) == lengths_.end()) lengths_.push_back(n);
}

void OverlapIndex::finish() {
    if (finished_) return;
    finished_ = true;
    make_filter();
    drop_common();
    std::sort(lengths_.begin(), lengths_.end());
}

// At least 16 bits an n-gram: one place in a hundred of an ordinary document passes by chance.
void OverlapIndex::make_filter() {
    int log2_blocks = 6;
    while (size_t{1} << log2_blocks < seeds_.size() / 4) ++log2_blocks;
    shift_ = 64 - log2_blocks;
    filter_.assign(size_t{1} << log2_blocks, 0);
    for (const uint64_t seed : seeds_) filter_[seed >> shift_] |= seed_bits(seed);
    seeds_ = {};
}

void OverlapIndex::drop_common() {
    const auto by_hash = [](const NGram& a, const NGram& b) {
        return std::tie(a.hash, a.item, a.at) < std::tie(b.hash, b.item, b.at);
    };
    std::sort(n_grams_.begin(), n_grams_.end(), by_hash);
    std::vector<bool> has_n_grams(items_.size());
    size_t kept = 0;
    for (size_t begin = 0, end = 0; begin < n_grams_.size(); begin = end) {
        size_t having = 0;
        for (; end < n_grams_.size() && n_grams_[end].hash == n_grams_[begin].hash; ++end) {
            having += end == begin || n_grams_[end].item != n_grams_[end - 1].item;
            has_n_grams[n_grams_[end].item] = true;
        }
        if (having > rules_.max_items) continue;
        for (size_t i = begin; i < end; ++i) n_grams_[kept++] = n_grams_[i];
    }
    n_grams_.resize(kept);
    n_grams_.shrink_to_fit();

    std::vector<std::pair<uint32_t, uint32_t>> places;  // item and place
    for (const NGram& n_gram : n_grams_) places.emplace_back(n_gram.item, n_gram.at);
    std::sort(places.begin(), places.end());
    for (size_t i = 0; i < places.size(); ++i) {
        Item& item = items_[places[i].first];
        const bool first = i == 0 || places[i - 1].first != places[i].first;
        item.words += first ? item.n : std::min(item.n, places[i].second - places[i - 1].second);
    }
    for (size_t i = 0; i < items_.size(); ++i) common_items_ += has_n_grams[i] && items_[i].words == 0;
}

std::vector<OverlapIndex::Hit> OverlapIndex::find_hits(std::string_view text) const {
    // What is needed of the last words: sums of hashes before them, and where they begin.
    constexpr size_t RING = 2 * MAX_N;
    std::vector<uint64_t> sums(RING, 0);
    std::vector<size_t> begins(RING, 0);
    std::vector<bool> found;  // n-grams already, by their number
    std::vector<Hit> hits;
    size_t words = 0;
    for_each_normal_word(text, [&](uint64_t hash, const Word& word) {
        begins[words % RING] = word.at;
        const uint64_t sum = sums[words % RING] * BASE + hash;
        sums[++words % RING] = sum;
        const auto window = [&](size_t n) { return sum - sums[(words - n) % RING] * powers_[n]; };
        if (words < seed_ || !passes(mix(window(seed_)))) return;
        for (const size_t n : lengths_) {
            if (n > words) break;
            const uint64_t key = with_length(window(n), n);
            auto n_gram = std::lower_bound(n_grams_.begin(), n_grams_.end(), key,
                                           [](const NGram& a, uint64_t sought) { return a.hash < sought; });
            if (n_gram == n_grams_.end() || n_gram->hash != key) continue;
            if (found.empty()) found.resize(n_grams_.size());
            const size_t number = n_gram - n_grams_.begin();
            if (found[number]) continue;
            found[number] = true;
            for (; n_gram != n_grams_.end() && n_gram->hash == key; ++n_gram) {
                hits.push_back({n_gram->item, n_gram->at, begins[(words - n) % RING], word.at + word.chars});
            }
        }
    });
    return hits;
}

std::vector<Overlap> OverlapIndex::find(std::string_view text, double share) const {
    if (!finished_) throw FormatError("an index is searched before it is finished");
    std::vector<Hit> hits = find_hits(text);
    std::sort(hits.begin(), hits.end(),
              [](const Hit& a, const Hit& b) { return std::tie(a.item, a.at) < std::tie(b.item, b.at); });
    std::vector<Overlap> overlaps;
    for (size_t begin = 0, end = 0; begin < hits.size(); begin = end) {
        const Item& item = items_[hits[begin].item];
        Overlap overlap{hits[begin].item, item.words, 0, hits[begin].begin, hits[begin].end};
        for (; end < hits.size() && hits[end].item == hits[begin].item; ++end) {
            overlap.covered += end == begin ? item.n : std::min(item.n, hits[end].at - hits[end - 1].at);
            overlap.begin = std::min(overlap.begin, hits[end].begin);
            overlap.end = std::max(overlap.end, hits[end].end);
        }
        if (static_cast<double>(overlap.covered) >= share * static_cast<double>(overlap.words)) {
            overlaps.push_back(overlap);
        }
    }
    return overlaps;
}

size_t OverlapIndex::bytes() const {
    return n_grams_.size() * sizeof(NGram) + filter_.size() * sizeof(uint64_t) + items_.size() * sizeof(Item);
}

}  // namespace mindllm
