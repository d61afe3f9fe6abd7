// Cutting texts into units, the table of units, and the ids of texts from those of their units.
#include "text_units.hpp"

#include <algorithm>
#include <limits>

#include "errors.hpp"

namespace mindllm {

namespace {

constexpr uint32_t SPACE_MARK = 0xE29681;  // U+2581, which stands for a space in pieces
constexpr size_t FIRST_SLOTS = 1 << 12;

// The bytes of the character at `at` as one number, and `at` moved behind it. Bytes that are no UTF-8 give some number
// or other, but nothing is read behind the text.
uint32_t next_character(std::string_view text, size_t& at) {
    uint32_t character = static_cast<uint8_t>(text[at++]);
    if (character < 0xC0) return character;
    while (at < text.size() && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) {
        character = character << 8 | static_cast<uint8_t>(text[at++]);
    }
    return character;
}

template <typename Call>
void for_each_pair(const std::vector<std::string>& pieces, Call call) {
    for (const std::string& piece : pieces) {
        uint32_t left = 0;
        for (size_t at = 0; at < piece.size();) {
            const bool first = at == 0;
            uint32_t right = next_character(piece, at);
            if (right == SPACE_MARK) right = ' ';
            if (!first) call(left, right);
            left = right;
        }
    }
}

}  // namespace

NeighbourSet::NeighbourSet(const std::vector<std::string>& pieces) {
    size_t pairs = 0;
    for_each_pair(pieces, [&pairs](uint32_t, uint32_t) { ++pairs; });
    int log2_bits = 12;
    while (size_t{1} << log2_bits < 16 * pairs) ++log2_bits;  // most pairs are in several pieces: far fewer bits are set
    shift_ = 64 - log2_bits;
    bits_.resize((size_t{1} << log2_bits) / 64);
    for_each_pair(pieces, [this](uint32_t left, uint32_t right) {
        const uint64_t bit = hash(left, right) >> shift_;
        bits_[bit >> 6] |= uint64_t{1} << (bit & 63);
    });
}

UnitEncoder::UnitEncoder(const std::vector<std::string>& pieces, size_t cache_bytes)
    : neighbours_(pieces), cache_limit_(cache_bytes) {
    clear();
}

size_t UnitEncoder::cache_bytes() const {
    return slots_.size() * sizeof(Slot) + units_.size() * sizeof(Unit) + text_.size() + ids_.size() * sizeof(int32_t);
}

void UnitEncoder::clear() {
    slots_.assign(FIRST_SLOTS, Slot());
    units_ = {};
    text_ = {};
    ids_ = {};
}

void UnitEncoder::encode(const std::vector<std::string_view>& texts, const Encode& encode, std::vector<int32_t>& ids,
                         std::vector<int32_t>& lengths) {
    if (cache_bytes() > cache_limit_) clear();
    const size_t known = units_.size();
    try {
        cut_.clear();
        std::vector<size_t> text_ends;
        text_ends.reserve(texts.size());
        for (const std::string_view text : texts) {
            cut(text);
            text_ends.push_back(cut_.size());
        }
        if (units_.size() > known) learn_new_units(known, encode);
        gather(text_ends, ids, lengths);
    } catch (...) {
        clear();  // of units without ids
        throw;
    }
}

void UnitEncoder::cut(std::string_view text) {
    size_t start = 0, at = 0;
    uint32_t left = SPACE_MARK;
    while (at < text.size()) {
        const size_t border = at;
        const uint32_t right = next_character(text, at);
        if (border > start && (left == SPACE_MARK || right == SPACE_MARK || !neighbours_.holds(left, right))) {
            cut_.push_back(find_or_add(text.substr(start, border - start)));
            start = border;
        }
        left = right;
    }
    if (at > start) cut_.push_back(find_or_add(text.substr(start)));
}

uint32_t UnitEncoder::find_or_add(std::string_view unit) {
    const auto hash = static_cast<uint32_t>(std::hash<std::string_view>()(unit));
    const size_t mask = slots_.size() - 1;
    size_t at = hash & mask;
    for (; slots_[at].unit; at = (at + 1) & mask) {
        if (slots_[at].hash != hash) continue;
        const Unit& other = units_[slots_[at].unit - 1];
        if (std::string_view(text_).substr(other.text, other.bytes) == unit) return slots_[at].unit - 1;
    }
    if (units_.size() == std::numeric_limits<uint32_t>::max() - 1) throw FormatError("texts have too many units");
    units_.push_back({text_.size(), unit.size(), 0, 0});
    text_ += unit;
    const auto added = static_cast<uint32_t>(units_.size());
    slots_[at] = {hash, added};
    if (2 * units_.size() > slots_.size()) grow();
    return added - 1;
}

void UnitEncoder::grow() {
    std::vector<Slot> larger(2 * slots_.size());
    const size_t mask = larger.size() - 1;
    for (const Slot& slot : slots_) {
        if (!slot.unit) continue;
        size_t at = slot.hash & mask;
        while (larger[at].unit) at = (at + 1) & mask;
        larger[at] = slot;
    }
    slots_.swap(larger);
}

void UnitEncoder::learn_new_units(size_t first, const Encode& encode) {
    std::vector<std::string_view> units;
    units.reserve(units_.size() - first);
    for (size_t i = first; i < units_.size(); ++i) {
        units.push_back(std::string_view(text_).substr(units_[i].text, units_[i].bytes));
    }
    const auto ids_of_units = encode(units);
    if (ids_of_units.size() != units.size()) throw FormatError("ids were not given for every unit");
    for (size_t i = 0; i < units.size(); ++i) {
        units_[first + i].ids = ids_.size();
        units_[first + i].count = ids_of_units[i].size();
        ids_.insert(ids_.end(), ids_of_units[i].begin(), ids_of_units[i].end());
    }
}

void UnitEncoder::gather(const std::vector<size_t>& text_ends, std::vector<int32_t>& ids,
                         std::vector<int32_t>& lengths) const {
    size_t total = 0, at = 0;
    lengths.clear();
    lengths.reserve(text_ends.size());
    for (const size_t end : text_ends) {
        size_t length = 0;
        for (; at < end; ++at) length += units_[cut_[at]].count;
        if (length > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
            throw FormatError("a text has more than 2147483647 tokens");
        }
        lengths.push_back(static_cast<int32_t>(length));
        total += length;
    }
    ids.clear();
    ids.reserve(total);
    for (const uint32_t number : cut_) {
        const Unit& unit = units_[number];
        for (size_t i = 0; i < unit.count; ++i) ids.push_back(ids_[unit.ids + i]);
    }
}

}  // namespace mindllm
