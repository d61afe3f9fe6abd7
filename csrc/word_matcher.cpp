// Building the automaton, running it, and choosing among occurrences that overlap.
#include "word_matcher.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

#include "errors.hpp"

namespace mindllm {

namespace {

char folded(char byte) { return byte >= 'A' && byte <= 'Z' ? static_cast<char>(byte + ('a' - 'A')) : byte; }

bool is_continuation(char byte) { return (static_cast<uint8_t>(byte) & 0xC0) == 0x80; }

// The character that begins at `at`, in valid UTF-8.
uint32_t character_at(std::string_view text, size_t at) {
    const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(text[at + i])); };
    if (byte(0) < 0x80) return byte(0);
    if (byte(0) < 0xE0) return (byte(0) & 0x1F) << 6 | (byte(1) & 0x3F);
    if (byte(0) < 0xF0) return (byte(0) & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    return 0x10000;  // emoji, rare Chinese characters, historic scripts
}

// A letter or digit of a script that puts spaces between words.
bool is_spaced(uint32_t character) {
    if (character < 0x80) {
        return (character >= '0' && character <= '9') || (character >= 'a' && character <= 'z') ||
               (character >= 'A' && character <= 'Z');
    }
    return (character >= 0xC0 && character < 0x2B0 && character != 0xD7 && character != 0xF7) ||
           (character >= 0x370 && character < 0x590) || (character >= 0x1E00 && character < 0x2000);
}

bool is_spaced_before(std::string_view text, size_t end) {
    if (end == 0) return false;
    size_t at = end - 1;
    while (at > 0 && is_continuation(text[at])) --at;
    return is_spaced(character_at(text, at));
}

bool is_spaced_after(std::string_view text, size_t begin) {
    return begin < text.size() && is_spaced(character_at(text, begin));
}

}  // namespace

// Places the states breadth first, so that the suffixes of a state are there before it, and siblings lie together.
class WordMatcher::Builder {
  public:
    Builder(WordMatcher& matcher, const std::vector<std::string>& words) : m_(matcher) {
        size_t total = 0;
        for (const std::string& word : words) {
            if (word.empty()) throw FormatError("a word is empty");
            if (word.size() > MAX_WORD_BYTES) throw FormatError("a word is longer than 1023 bytes");
            total += word.size();
        }
        if (words.empty()) throw FormatError("there is no word");
        if (total >= static_cast<size_t>(std::numeric_limits<int32_t>::max())) throw FormatError("too many words");
        for (const std::string& word : words) {
            folded_.push_back(word);
            std::transform(word.begin(), word.end(), folded_.back().begin(), folded);
            m_.longest_ = std::max(m_.longest_, word.size());
        }
        order_.resize(words.size());
        std::iota(order_.begin(), order_.end(), 0);
        std::sort(order_.begin(), order_.end(), [this](int32_t a, int32_t b) {
            const int difference = folded_[a].compare(folded_[b]);
            return difference != 0 ? difference < 0 : a < b;
        });
    }

    void build() {
        number_classes();
        grow();
        take(0);
        m_.words_.push_back({});
        std::vector<Range> level{{0, 0, order_.size()}}, next;
        for (size_t depth = 0; !level.empty(); ++depth, level.swap(next), next.clear()) {
            for (const Range& range : level) place_children(range, depth, next);
        }
    }

  private:
    // The words order_[begin, end), all that begin as the state does.
    struct Range {
        int32_t state;
        size_t begin, end;
    };

    void number_classes() {
        std::array<bool, 256> used{};
        for (const std::string& word : folded_) {
            for (const char byte : word) used[static_cast<uint8_t>(byte)] = true;
        }
        for (int byte = 0; byte < 256; ++byte) {
            if (used[byte]) m_.class_of_[byte] = ++classes_;
        }
        for (int byte = 'A'; byte <= 'Z'; ++byte) m_.class_of_[byte] = m_.class_of_[folded(static_cast<char>(byte))];
    }

    void place_children(const Range& range, size_t depth, std::vector<Range>& next) {
        m_.states_[range.state].output = m_.states_[m_.states_[range.state].fail].output;
        size_t begin = range.begin;
        while (begin < range.end && folded_[order_[begin]].size() == depth) ++begin;
        if (begin > range.begin) add_word(range.state, order_[range.begin]);
        std::vector<Range> children;
        std::vector<uint8_t> classes;
        while (begin < range.end) {
            const char byte = folded_[order_[begin]][depth];
            size_t end = begin + 1;
            while (end < range.end && folded_[order_[end]][depth] == byte) ++end;
            classes.push_back(m_.class_of_[static_cast<uint8_t>(byte)]);
            children.push_back({0, begin, end});
            begin = end;
        }
        if (children.empty()) return;
        const int32_t base = find_base(classes);
        m_.states_[range.state].base = base;
        for (size_t i = 0; i < children.size(); ++i) {
            const int32_t child = base + classes[i];
            take(child);
            m_.states_[child].parent = range.state;
            m_.states_[child].fail = suffix_of_child(range.state, classes[i]);
            m_.depth_[child] = static_cast<uint16_t>(depth + 1);
            children[i].state = child;
        }
        next.insert(next.end(), children.begin(), children.end());
    }

    void add_word(int32_t state, int32_t number) {
        const std::string& word = folded_[number];
        size_t last = word.size() - 1;
        while (last > 0 && is_continuation(word[last])) --last;
        m_.words_.push_back({number, m_.states_[state].output, static_cast<uint16_t>(word.size()),
                             is_spaced(character_at(word, 0)), is_spaced(character_at(word, last))});
        m_.states_[state].output = static_cast<int32_t>(m_.words_.size() - 1);
    }

    int32_t suffix_of_child(int32_t state, uint8_t byte_class) const {
        while (state != 0) {
            state = m_.states_[state].fail;
            const int32_t child = m_.states_[state].base + byte_class;
            if (m_.states_[child].parent == state) return child;
        }
        return 0;
    }

    // Free slots form a list in the order of their places; its first is free_next_[0], and 0 ends it.
    void take(int32_t slot) {
        if (slot != 0) {
            free_next_[free_previous_[slot]] = free_next_[slot];
            free_previous_[free_next_[slot]] = free_previous_[slot];
        }
        taken_[slot] = true;
        // A look-up by any class stays within the array, as does the next search for a base.
        while (m_.states_.size() < static_cast<size_t>(slot) + 2 * 256) grow();
    }

    void grow() {
        const size_t before = m_.states_.size(), after = std::max<size_t>(1024, before + before / 2);
        m_.states_.resize(after);
        m_.depth_.resize(after);
        taken_.resize(after);
        free_next_.resize(after);
        free_previous_.resize(after);
        for (size_t slot = std::max<size_t>(before, 1); slot < after; ++slot) {
            const int32_t last = free_previous_[0];
            free_next_[last] = static_cast<int32_t>(slot);
            free_previous_[slot] = last;
            free_next_[slot] = 0;
            free_previous_[0] = static_cast<int32_t>(slot);
        }
    }

    // A base at which all children find free slots: the first that some hundred tries give, else behind all states.
    int32_t find_base(const std::vector<uint8_t>& classes) {
        int tries = 0;
        for (int32_t slot = free_next_[0]; slot != 0 && tries < 512; slot = free_next_[slot], ++tries) {
            const int32_t base = slot - classes[0];
            if (base < 0 || static_cast<size_t>(base) + 256 > taken_.size()) continue;
            if (std::none_of(classes.begin(), classes.end(), [&](uint8_t c) { return taken_[base + c]; })) {
                last_base_ = std::max(last_base_, base);
                return base;
            }
        }
        last_base_ += 256;
        while (taken_.size() < static_cast<size_t>(last_base_) + 2 * 256) grow();
        return last_base_;
    }

    WordMatcher& m_;
    std::vector<std::string> folded_;
    std::vector<int32_t> order_;  // the words' numbers, sorted by what they are
    uint8_t classes_ = 0;         // UTF-8 has fewer than 256 different bytes
    std::vector<bool> taken_;
    std::vector<int32_t> free_next_, free_previous_;
    int32_t last_base_ = 0;
};

WordMatcher::WordMatcher(const std::vector<std::string>& words) { Builder(*this, words).build(); }

// Occurrences come in the order of their ends; those that begin before all that may still come are decided on. Only as
// many bytes as the longest word has are undecided at a time.
class WordMatcher::Selection {
  public:
    explicit Selection(const WordMatcher& matcher) : m_(matcher) {
        size_t size = 1;
        while (size <= matcher.longest_) size *= 2;
        longest_at_.resize(size);
    }

    bool is_waiting() const { return waiting_ > 0; }

    // `frontier`: no occurrence that is still to come begins before it.
    void add(size_t begin, int32_t word, size_t frontier) {
        if (begin < free_from_) return;
        if (waiting_ == 0) decided_ = frontier;
        int32_t& longest = longest_at_[begin & (longest_at_.size() - 1)];
        if (longest == 0) ++waiting_;
        longest = word;  // ends behind the one that was there
    }

    void decide(size_t frontier) {
        for (; waiting_ > 0 && decided_ < frontier; ++decided_) {
            int32_t& longest = longest_at_[decided_ & (longest_at_.size() - 1)];
            if (longest == 0) continue;
            if (decided_ >= free_from_) {
                const Word& word = m_.words_[longest];
                if (counts_.occurrences.empty()) counts_.first = decided_;
                ++counts_.occurrences[word.number];
                free_from_ = decided_ + word.length;
            }
            longest = 0;
            --waiting_;
        }
    }

    WordCounts& counts() { return counts_; }

  private:
    const WordMatcher& m_;
    WordCounts counts_;
    std::vector<int32_t> longest_at_;  // a ring: the longest of words_ that begins at a byte; 0: none
    size_t decided_ = 0, free_from_ = 0, waiting_ = 0;
};

bool WordMatcher::stands_alone(const Word& word, std::string_view text, size_t begin, size_t end) const {
    return !(word.spaced_begin && is_spaced_before(text, begin)) && !(word.spaced_end && is_spaced_after(text, end));
}

WordCounts WordMatcher::count(std::string_view text) const {
    Selection selection(*this);
    const State* const states = states_.data();
    int32_t state = 0;
    for (size_t at = 0; at < text.size(); ++at) {
        const uint8_t byte_class = class_of_[static_cast<uint8_t>(text[at])];
        if (byte_class == 0) {
            state = 0;
        } else {
            int32_t child = states[state].base + byte_class;
            while (states[child].parent != state) {
                if (state == 0) {
                    child = 0;
                    break;
                }
                state = states[state].fail;
                child = states[state].base + byte_class;
            }
            state = child;
        }
        const size_t end = at + 1;
        for (int32_t output = states[state].output; output != 0; output = words_[output].shorter) {
            const Word& word = words_[output];
            const size_t begin = end - word.length;
            if (stands_alone(word, text, begin, end)) selection.add(begin, output, end - depth_[state]);
        }
        if (selection.is_waiting()) selection.decide(end - depth_[state]);
    }
    selection.decide(text.size());
    return std::move(selection.counts());
}

}  // namespace mindllm
