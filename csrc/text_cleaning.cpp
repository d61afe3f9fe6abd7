// The one pass: characters are written one after the other, and whatever is to be removed again is looked for at the end
// of what has been written. So what a removal brings together is seen as well, and a second pass finds nothing.
#include "text_cleaning.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstddef>

#include "characters.hpp"
#include "html_tags.hpp"

namespace mindllm {

namespace {

constexpr size_t NOWHERE = std::string::npos;
constexpr size_t LONGEST_TAG = 1024;          // bytes
constexpr size_t LONGEST_SCRIPT = 64 * 1024;  // bytes, to its end tag; beyond it only the tag goes
constexpr size_t BLANK_LINES = 2;             // that stay of a run
constexpr std::string_view COMMENT = "<!--", NBSP = "&nbsp;";

// Where the next end of a script, style or comment is. Remembers how far it has looked: any number of searches is linear.
class EndSearch {
  public:
    EndSearch(std::string_view text, std::string_view end) : text_(text), end_(end) {}

    // Behind the end, if it comes soon after `at`.
    size_t operator()(size_t at) {
        size_t i = std::max(at, looked_);
        const size_t last = std::min(text_.size(), at + LONGEST_SCRIPT);
        for (; i + end_.size() <= last; ++i) {
            if (text_[i] == end_[0] && is_end(i)) {
                looked_ = i;
                return i + end_.size();
            }
        }
        looked_ = std::max(looked_, i);
        return NOWHERE;
    }

  private:
    bool is_end(size_t at) const {
        return std::equal(end_.begin(), end_.end(), text_.begin() + static_cast<std::ptrdiff_t>(at),
                          [](char a, char b) { return a == std::tolower(static_cast<unsigned char>(b)); });
    }

    const std::string_view text_, end_;
    size_t looked_ = 0;
};

// 2 for Chinese characters and punctuation, 1 for what Chinese shares with other languages. A space goes between two
// whose sum is 3 at least.
int chinese(char32_t c) {
    if (c < 0xB7) return 0;
    if (is_han(c) || is_chinese_punctuation(c)) return 2;
    return is_shared_punctuation(c) ? 1 : 0;
}

// No space is put before it where something invisible was.
bool closes(char32_t c) {
    if (c < 0x80) return std::string_view(".,;:!?)]}%'\"").find(static_cast<char>(c)) != NOWHERE;
    return is_chinese_punctuation(c);
}

// ASCII that needs no thought: all visible characters but those at which markup ends or may begin.
constexpr std::array<bool, 256> plain_table() {
    std::array<bool, 256> plain{};
    for (int c = '!'; c < 0x7F; ++c) plain[c] = c != '<' && c != '>' && c != '-' && c != ';';
    return plain;
}
constexpr std::array<bool, 256> PLAIN = plain_table();

class Cleaner {
  public:
    Cleaner(std::string_view text, CleaningCounts& counts)
        : text_(text), counts_(counts), script_end_(text, "</script>"), style_end_(text, "</style>"),
          comment_end_(text, "-->") {
        out_.reserve(text.size());
    }

    std::string run() {
        while (at_ < text_.size()) step();
        trim_line();
        for (; !out_.empty() && out_.back() == '\n'; ++counts_.blank_lines) out_.pop_back();
        return std::move(out_);
    }

  private:
    // What was removed just now asks of the next character.
    enum class Gap {
        NONE,
        ONE_SPACE,  // a space behind a space, or at the beginning of a line, is one too many
        WORD,       // so it is; and a word must not grow together with the one before
    };

    void step() {
        const auto byte = static_cast<uint8_t>(text_[at_]);
        if (PLAIN[byte]) {
            size_t end = at_ + 1;
            while (end < text_.size() && PLAIN[static_cast<uint8_t>(text_[end])]) ++end;
            before_visible(byte);
            out_.append(text_, at_, end - at_);
            at_ = end;
            return;
        }
        const size_t start = at_;
        const char32_t c = decode_character(text_, at_);
        if (c == ' ' || c == '\t') return space(static_cast<char>(c));
        if (c == '\n') return line_break();
        if (c < 0x80) return c < 0x20 || c == 0x7F ? control(c) : markup_sign(static_cast<char>(c));
        if (between(c, 0x4E00, 0x9FFF)) return visible(c, start);  // most of what is not ASCII
        if (is_exotic_line_break(c)) return control(c);
        if (is_control(c)) return control(c);
        if (is_exotic_space(c)) {
            ++counts_.invisible;
            return space(' ');
        }
        if (is_variation_selector(c)) {
            ++counts_.invisible;
            return;
        }
        if (is_invisible(c)) {
            ++counts_.invisible;
            if (!at_line_start()) gap_ = Gap::WORD;
            return;
        }
        if (is_emoji(c) || (is_text_pictograph(c) && next() == 0xFE0F)) return emoji();
        if (c == 0x20E3) {  // the key around a digit
            ++counts_.emoji;
            return;
        }
        visible(c, start);
    }

    char32_t next() const {
        size_t at = at_;
        return at < text_.size() ? decode_character(text_, at) : 0;
    }

    bool at_line_start() const { return out_.empty() || out_.back() == '\n'; }
    bool after_space() const { return at_line_start() || out_.back() == ' ' || out_.back() == '\t'; }

    void control(char32_t c) {
        ++counts_.control;
        if (c == '\r') {
            if (at_ >= text_.size() || text_[at_] != '\n') line_break();
        } else if (is_exotic_line_break(c)) {
            line_break();
        }
    }

    // The rest of the sequence that a first character has begun.
    void emoji() {
        ++counts_.emoji;
        while (at_ < text_.size()) {
            size_t at = at_;
            char32_t c = decode_character(text_, at);
            if (c == 0x200D) {  // joins the next
                at_ = at;
                ++counts_.emoji;
                c = next();
                if (!is_emoji(c) && !is_text_pictograph(c)) continue;
                decode_character(text_, at);
            } else if (!is_variation_selector(c) && c != 0x20E3 && !between(c, 0x1F3FB, 0x1F3FF) &&
                       !between(c, 0xE0020, 0xE007F)) {
                break;
            }
            at_ = at;
            ++counts_.emoji;
        }
        gap_ = Gap::WORD;
    }

    void space(char c) {
        const bool superfluous = gap_ != Gap::NONE && after_space();
        gap_ = Gap::NONE;
        if (!superfluous) out_ += c;
    }

    void line_break() {
        gap_ = Gap::NONE;
        last_open_ = NOWHERE;
        trim_line();
        if (is_fence()) fenced_ = !fenced_;
        const bool blank = at_line_start();
        if (blank && ++blank_lines_ > (out_.empty() ? 0 : BLANK_LINES)) {
            ++counts_.blank_lines;
            return;
        }
        if (!blank) blank_lines_ = 0;
        out_ += '\n';
        line_start_ = out_.size();
    }

    void trim_line() {
        size_t end = out_.size();
        while (end > line_start_ && (out_[end - 1] == ' ' || out_[end - 1] == '\t')) --end;
        counts_.trailing_spaces += static_cast<int64_t>(out_.size() - end);
        out_.resize(end);
    }

    // Opens or closes a block of code: ``` and at most the name of a language.
    bool is_fence() const {
        const std::string_view line = std::string_view(out_).substr(line_start_);
        const size_t start = line.find_first_not_of(" \t");
        if (start == NOWHERE || line.substr(start, 3) != "```") return false;
        const size_t rest = line.find_first_not_of('`', start);
        return rest == NOWHERE || line.find('`', rest) == NOWHERE;
    }

    void before_visible(char32_t c) {
        if (gap_ == Gap::WORD && !after_space() && !closes(c)) out_ += ' ';
        gap_ = Gap::NONE;
    }

    void visible(char32_t c, size_t start) {
        before_visible(c);
        if (!out_.empty() && out_.back() == ' ') close_up(c);
        out_.append(text_, start, at_ - start);
    }

    // Remove spaces between the last character and this one, if both are Chinese.
    void close_up(char32_t c) {
        const int right = chinese(c);
        if (right == 0) return;
        size_t end = out_.size();
        while (end > line_start_ && out_[end - 1] == ' ') --end;
        if (end == line_start_) return;
        size_t left = end - 1;
        while (left > line_start_ && (static_cast<uint8_t>(out_[left]) & 0xC0) == 0x80) --left;
        if (chinese(decode_character(out_, left)) + right < 3) return;
        counts_.chinese_spaces += static_cast<int64_t>(out_.size() - end);
        out_.resize(end);
    }

    // One of < > - ;
    void markup_sign(char c) {
        before_visible(c);
        if (c == '<') last_open_ = out_.size();
        out_ += c;
        if (fenced_) return;
        if (c == '>') {
            remove_tag();
        } else if (c == '-' && ends_with(COMMENT)) {
            remove(COMMENT.size());
            skip_to(comment_end_);
            gap_ = Gap::ONE_SPACE;
        } else if (c == ';' && ends_with(NBSP)) {
            remove(NBSP.size());
            if (!at_line_start()) gap_ = Gap::WORD;
        }
    }

    // And not as inline code: `<!--`.
    bool ends_with(std::string_view markup) const {
        const size_t size = out_.size();
        return size >= markup.size() && std::string_view(out_).substr(size - markup.size()) == markup &&
               (size == markup.size() || out_[size - markup.size() - 1] != '`');
    }

    void remove_tag() {
        const size_t open = last_open_;
        last_open_ = NOWHERE;
        if (open == NOWHERE || out_.size() - open > LONGEST_TAG || (open > 0 && out_[open - 1] == '`')) return;
        const Tag tag = parse_tag(std::string_view(out_).substr(open + 1, out_.size() - open - 2));
        if (tag == Tag::NONE) return;
        remove(out_.size() - open);
        if (tag == Tag::SCRIPT) skip_to(script_end_);
        if (tag == Tag::STYLE) skip_to(style_end_);
        gap_ = tag == Tag::INLINE ? Gap::ONE_SPACE : Gap::WORD;
    }

    // Take markup from the end. A < before it may now be that of a tag.
    void remove(size_t bytes) {
        ++counts_.markup;
        out_.resize(out_.size() - bytes);
        const size_t first = std::max(line_start_, out_.size() - std::min(out_.size(), LONGEST_TAG));
        const size_t found = std::string_view(out_).substr(first).find_last_of("<>");
        last_open_ = found != NOWHERE && out_[first + found] == '<' ? first + found : NOWHERE;
    }

    void skip_to(EndSearch& search) {
        const size_t end = search(at_);
        if (end != NOWHERE) at_ = end;
    }

    const std::string_view text_;
    CleaningCounts& counts_;
    EndSearch script_end_, style_end_, comment_end_;
    std::string out_;
    size_t at_ = 0;                // the next byte to read
    size_t line_start_ = 0;        // in out_
    size_t last_open_ = NOWHERE;   // the last < of the line in out_, if no > comes after it
    size_t blank_lines_ = 0;       // at the end of out_
    bool fenced_ = false;
    Gap gap_ = Gap::NONE;
};

}  // namespace

std::string clean_format(std::string_view text, CleaningCounts& counts) { return Cleaner(text, counts).run(); }

}  // namespace mindllm
