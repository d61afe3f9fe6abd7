// The pass over a text: where something may begin, and what is written in its place.
#include "personal_data.hpp"

#include "personal_addresses.hpp"
#include "personal_context.hpp"
#include "personal_numbers.hpp"

namespace mindllm {

namespace {

// Bytes at which something may begin; all others are passed over. 0xEF: full-width digits and signs.
constexpr std::array<bool, 256> make_triggers() {
    std::array<bool, 256> triggers{};
    for (int byte = '0'; byte <= '9'; ++byte) triggers[byte] = true;
    triggers['+'] = triggers['('] = triggers['@'] = triggers[':'] = triggers[0xEF] = true;
    return triggers;
}
constexpr std::array<bool, 256> TRIGGERS = make_triggers();

class Scanner {
  public:
    Scanner(std::string_view text, const PersonalDataOptions& options) : text_(text), options_(options) {}

    CleanedText run() {
        while (at_ < text_.size()) {
            const char byte = text_[at_];
            if (!TRIGGERS[static_cast<uint8_t>(byte)]) {
                ++at_;
            } else if (byte == '@') {
                look_for_email();
            } else if (byte == ':') {
                look_behind_colon();
            } else {
                look_for_number();
            }
        }
        if (copied_ > 0) cleaned_.text.append(text_.substr(copied_));
        return std::move(cleaned_);
    }

  private:
    void replace(const PersonalSpan& span) {
        const auto kind = static_cast<size_t>(span.kind);
        cleaned_.text.append(text_.substr(copied_, span.begin - copied_)).append(options_.tokens[kind]);
        ++cleaned_.counts[kind];
        at_ = copied_ = span.end;
    }

    // Whether an address was found; one that belongs to nobody is passed over as a whole.
    bool take(const AddressSpan& found) {
        if (!found.span) return false;
        if (!found.kept || options_.reserved) {
            replace(found.span);
        } else {
            at_ = found.span.end;
        }
        return true;
    }

    void look_for_email() {
        if (!take(find_email(text_, at_, copied_))) ++at_;
    }

    void look_behind_colon() {
        if (has_at(text_, at_, "://")) {
            pass_url();
        } else if (!take(find_ipv6(text_, at_, copied_))) {
            ++at_;
        }
    }

    // Nothing in a URL is a number; its host may be an address, and so may the value of a parameter.
    void pass_url() {
        at_ += 3;
        if (at_ < text_.size() && is_digit(text_[at_])) take(find_ipv4(text_, at_));
        while (at_ < text_.size()) {
            const char byte = text_[at_];
            if (byte <= ' ' || byte == '"' || byte == '<' || byte == '>' || byte == '`' || byte == ')') return;  // or not ASCII
            if (byte == '@') {
                const AddressSpan found = find_email(text_, at_, copied_);
                if (found.span && byte_before(text_, found.span.begin) == '=' && take(found)) continue;
            }
            ++at_;
        }
    }

    void look_for_number() {
        size_t bytes = 0;
        if (digit_at(text_, at_, bytes) < 0) {
            const bool sign = text_[at_] != '\xEF' || has_at(text_, at_, "＋") || has_at(text_, at_, "（");
            const size_t behind = at_ + (text_[at_] == '\xEF' ? 3 : 1);
            const char next = byte_at(text_, behind);
            if (sign && (is_digit(next) || next == '+' || next == '(' || next == '\xEF')) {
                const PersonalSpan found = find_number(text_, at_, options_.old_id_numbers);
                if (found) return replace(found);
            }
            at_ = behind;
            return;
        }
        if (!glued_to_word() && !is_short_number()) {
            if (is_digit(text_[at_]) && take(find_ipv4(text_, at_))) return;
            const PersonalSpan found = find_number(text_, at_, options_.old_id_numbers);
            if (found) return replace(found);
        }
        while (digit_at(text_, at_, bytes) >= 0) at_ += bytes;
    }

    // A few digits and then something that never stands within a number: what most numbers are.
    bool is_short_number() const {
        size_t end = at_;
        while (end < text_.size() && end < at_ + 7 && is_digit(text_[end])) ++end;
        if (end == at_ || end == at_ + 7) return false;
        const auto next = static_cast<uint8_t>(byte_at(text_, end));
        if (next == ' ' || next == '-' || next == '.') return !is_digit(byte_at(text_, end + 1)) && next != ' ';
        return next != '(' && next != ')' && next != 0xC2 && next != 0xE2 && next != 0xEF;
    }

    bool glued_to_word() const {
        const char before = byte_before(text_, at_);
        return is_alnum(before) || before == '_';
    }

    const std::string_view text_;
    const PersonalDataOptions& options_;
    CleanedText cleaned_;
    size_t at_ = 0;
    size_t copied_ = 0;  // up to where the text is in cleaned_
};

}  // namespace

CleanedText replace_personal_data(std::string_view text, const PersonalDataOptions& options) {
    return Scanner(text, options).run();
}

}  // namespace mindllm
