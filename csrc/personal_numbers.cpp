// Reading digits in groups, and the forms that groups of digits have.
//
// Identity numbers: GB 11643 (region, date of birth, ISO 7064 check digit). Bank cards: prefixes and lengths of ISO 7812,
// with Luhn's check digit. Phones: the Chinese numbering plan, the North American one, and E.164 for '+' and all others.
#include "personal_numbers.hpp"

#include <algorithm>
#include <initializer_list>

#include "personal_context.hpp"

namespace mindllm {

namespace {

constexpr size_t MAX_GROUPS = 7, MAX_GROUP_DIGITS = 20, MAX_DIGITS = 40;

// Digits as they stand in a text: "+86 (010) 6234-5678" has a plus and the groups 86, 010, 6234 and 5678.
struct Groups {
    size_t begin = 0;
    bool plus = false, open = false;  // '+', or '(' that is closed behind the first group
    size_t count = 0;
    struct Group {
        size_t first, digits;  // in digit
        size_t begin, end;     // in the text
        Separator before;      // what sets it off from the group before it
    } group[MAX_GROUPS] = {};
    char digit[MAX_DIGITS + 1] = {};

    std::string_view digits(size_t from, size_t groups) const {
        const Group& last = group[from + groups - 1];
        return std::string_view(digit + group[from].first, last.first + last.digits - group[from].first);
    }
    size_t end(size_t groups) const { return group[groups - 1].end; }

    // Whether the groups from `from` on begin with these lengths.
    bool have(size_t from, std::initializer_list<size_t> lengths) const {
        if (from + lengths.size() > count) return false;
        size_t at = from;
        return std::all_of(lengths.begin(), lengths.end(), [&](size_t length) { return group[at++].digits == length; });
    }

    // The separator within [from, from + groups): that of all of them, or HYPHEN where they differ.
    Separator inner(size_t from, size_t groups) const {
        if (groups < 2) return Separator::NONE;
        const Separator first = group[from + 1].before;
        for (size_t i = from + 2; i < from + groups; ++i) {
            if (group[i].before != first) return Separator::HYPHEN;
        }
        return first;
    }
};

// The separator at `at`, moved behind it. Brackets may have a space or a hyphen beside them.
Separator read_separator(std::string_view text, size_t& at) {
    const auto take = [&](std::string_view what) {
        if (!has_at(text, at, what)) return false;
        at += what.size();
        return true;
    };
    if (take(")") || take("）")) {
        if (!take(" ")) take("-");
        return Separator::CLOSE;
    }
    if (take(" (") || take("(")) return Separator::HYPHEN;
    if (take(" ") || take("\xC2\xA0")) return Separator::SPACE;
    if (take("-") || take("－") || take("–") || take("—")) return Separator::HYPHEN;
    if (take(".")) return Separator::DOT;
    return Separator::NONE;
}

Groups read_groups(std::string_view text, size_t at) {
    Groups groups;
    groups.begin = at;
    size_t bytes = 0;
    for (const std::string_view open : {"(", "（"}) {
        if (has_at(text, at, open)) {
            groups.open = true;
            at += open.size();
            break;
        }
    }
    for (const std::string_view plus : {"+", "＋"}) {
        if (has_at(text, at, plus)) {
            groups.plus = true;
            at += plus.size();
            break;
        }
    }
    if (groups.plus && byte_at(text, at) == '(') {  // "+(86) 138..."
        groups.open = true;
        ++at;
    }
    size_t digits = 0;
    Separator before = Separator::NONE;
    while (groups.count < MAX_GROUPS) {
        Groups::Group group{digits, 0, at, at, before};
        for (int digit; (digit = digit_at(text, at, bytes)) >= 0; at += bytes) {
            if (group.digits == MAX_GROUP_DIGITS || digits == MAX_DIGITS) return groups;  // too long for anything
            groups.digit[digits++] = static_cast<char>('0' + digit);
            ++group.digits;
        }
        if (group.digits == 0) break;
        group.end = at;
        groups.group[groups.count++] = group;
        before = read_separator(text, at);
        if (before == Separator::NONE) break;
    }
    if (groups.open && (groups.count < 2 || groups.group[1].before != Separator::CLOSE)) groups.count = 0;
    return groups;
}

int number(std::string_view digits) {
    int value = 0;
    for (const char digit : digits) value = 10 * value + (digit - '0');
    return value;
}

// Whether a list of numbers of one length, set off by spaces, has this one.
bool holds(std::string_view list, std::string_view number) { return list.find(number) != std::string_view::npos; }

bool is_region(std::string_view digits) {
    constexpr std::string_view REGIONS =
        "11 12 13 14 15 21 22 23 31 32 33 34 35 36 37 41 42 43 44 45 46 50 51 52 53 54 61 62 63 64 65 71 81 82 83 91";
    // A province is no one's region; what is not divided further is (Taiwan, Hong Kong, Macao).
    const bool is_whole = digits[0] == '7' || digits[0] == '8';
    return holds(REGIONS, digits.substr(0, 2)) && (is_whole || digits.substr(2, 4) != "0000");
}

bool is_date(int year, int month, int day) {
    constexpr int DAYS[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    if (year < 1890 || year > 2035 || month < 1 || month > 12 || day < 1) return false;
    const bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    return day <= DAYS[month - 1] + (month == 2 && leap ? 1 : 0);
}

// 17 digits and the check digit, which may be 'X'.
bool is_id_number(std::string_view digits, char check) {
    constexpr int WEIGHTS[] = {7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2};
    if (!is_region(digits)) return false;
    if (!is_date(number(digits.substr(6, 4)), number(digits.substr(10, 2)), number(digits.substr(12, 2)))) return false;
    int sum = 0;
    for (int i = 0; i < 17; ++i) sum += WEIGHTS[i] * (digits[i] - '0');
    return "10X98765432"[sum % 11] == check;
}

PersonalSpan find_id_number(std::string_view text, const Groups& groups, bool old_form) {
    if (groups.plus || groups.open || groups.count == 0) return {};
    size_t used = 1;
    if (groups.have(0, {6, 8, 4}) || groups.have(0, {6, 8, 3})) used = 3;
    const std::string_view digits = groups.digits(0, used);
    size_t end = groups.end(used);
    const Separator inner = groups.inner(0, used);
    if (!begins_number(text, groups.begin, inner)) return {};
    char check = '\0';
    if (digits.size() == 18) {
        check = digits[17];
    } else if (digits.size() == 17) {
        for (const std::string_view x : {"X", "x", "Ｘ", "ｘ"}) {
            if (!has_at(text, end, x)) continue;
            check = 'X';
            end += x.size();
            break;
        }
    }
    if (old_form && digits.size() == 15 && used == 1) {
        const int year = 1900 + number(digits.substr(6, 2));
        if (!is_region(digits) || !is_date(year, number(digits.substr(8, 2)), number(digits.substr(10, 2)))) return {};
    } else if (check == '\0' || !is_id_number(digits.substr(0, 17), check)) {
        return {};
    }
    if (!ends_number(text, end, inner)) return {};
    return {PersonalKind::ID_NUMBER, groups.begin, end};
}

bool passes_luhn(std::string_view digits) {
    int sum = 0;
    for (size_t i = 0; i < digits.size(); ++i) {
        const int digit = digits[digits.size() - 1 - i] - '0';
        const int doubled = i % 2 == 1 ? 2 * digit : digit;
        sum += doubled > 9 ? doubled - 9 : doubled;
    }
    return sum % 10 == 0;
}

bool is_card_prefix(std::string_view digits) {
    const size_t length = digits.size();
    const int two = number(digits.substr(0, 2)), three = number(digits.substr(0, 3)), four = number(digits.substr(0, 4));
    if (two == 62 && length >= 16 && length <= 19) return true;                         // UnionPay
    if (four == 9558 && length == 19) return true;                                      // ICBC, before UnionPay
    if (length == 16 && digits[0] == '4') return true;                                  // Visa
    if (length == 16 && two >= 51 && two <= 55) return true;                            // Mastercard
    if (length == 16 && four >= 2221 && four <= 2720) return true;                      // Mastercard
    if (length == 15 && (two == 34 || two == 37)) return true;                          // American Express
    if (length == 16 && four >= 3528 && four <= 3589) return true;                      // JCB
    if (length == 16 && (four == 6011 || two == 65 || (three >= 644 && three <= 649))) return true;    // Discover
    return length == 14 && ((three >= 300 && three <= 305) || two == 36 || two == 38 || two == 39);  // Diners Club
}

PersonalSpan find_bank_card(std::string_view text, const Groups& groups) {
    if (groups.plus || groups.open || groups.count == 0) return {};
    const auto card = [&](size_t used) -> PersonalSpan {
        const std::string_view digits = groups.digits(0, used);
        const Separator inner = groups.inner(0, used);
        if (used > 1 && inner != Separator::SPACE && inner != Separator::HYPHEN) return {};
        if (!is_card_prefix(digits) || !passes_luhn(digits)) return {};
        if (!begins_number(text, groups.begin, inner) || is_amount(text, groups.begin, groups.end(used))) return {};
        // A date may follow, but not one more part of the same length.
        const bool goes_on = used > 1 && used < groups.count && groups.group[used].digits == groups.group[used - 1].digits;
        if (goes_on || !ends_number(text, groups.end(used), inner == Separator::SPACE ? Separator::NONE : inner)) return {};
        if (label_before(text, groups.begin) == Label::OTHER) return {};
        return {PersonalKind::BANK_CARD, groups.begin, groups.end(used)};
    };
    PersonalSpan found;
    if (groups.group[0].digits >= 14) {
        found = card(1);
    } else if (groups.have(0, {4, 4, 4, 4})) {
        if (groups.count > 4 && groups.group[4].digits <= 3) found = card(5);
        if (!found) found = card(4);
    } else if (groups.have(0, {4, 6, 5}) || groups.have(0, {4, 6, 4})) {
        found = card(3);
    } else if (groups.have(0, {6, 13}) || groups.have(0, {6, 10})) {
        found = card(2);
    }
    return found;
}

// -- Phones ---

bool is_chinese_mobile(std::string_view digits) {
    if (digits.size() != 11 || digits[0] != '1') return false;
    constexpr std::string_view THIRD_DIGITS[] = {"", "", "", "0123456789", "01456789", "012356789",
                                                 "2567", "012345678", "0123456789", "012356789"};
    return THIRD_DIGITS[digits[1] - '0'].find(digits[2]) != std::string_view::npos;
}

// Without the 0 before it: 10, 2x, and three digits from 310 on.
bool is_chinese_area(std::string_view code) {
    if (code.size() == 2) return code == "10" || (code[0] == '2' && code[1] != '6');
    return code.size() == 3 && code[0] >= '3' && code[0] <= '9';
}

// The number behind an area code: eight digits, or seven behind a code of three.
bool is_chinese_local(std::string_view area, std::string_view local) {
    return local[0] >= '2' && (local.size() == 8 || (local.size() == 7 && area.size() == 3));
}

bool is_north_american(std::string_view digits) {
    if (digits.size() != 10 || digits[0] < '2' || digits[3] < '2' || digits[1] == '9') return false;
    return !(digits[1] == '1' && digits[2] == '1') && !(digits[4] == '1' && digits[5] == '1');
}

bool is_country_code(std::string_view digits) {
    constexpr std::string_view TWO = "20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 "
                                     "63 64 65 66 81 82 84 86 90 91 92 93 94 95 98";
    constexpr std::string_view OF_THREE = "21 22 23 24 25 26 29 35 37 38 42 50 59 67 68 69 80 85 87 88 96 97 99";
    constexpr std::string_view UNUSED = "210 214 215 217 219 292 293 294 295 296 384 388 851 854 857 858 859 969 978 990 991 "
                                        "997 999";
    if (holds(UNUSED, digits.substr(0, 3))) return false;
    return digits[0] == '1' || digits[0] == '7' || holds(TWO, digits.substr(0, 2)) ||
           holds(OF_THREE, digits.substr(0, 2));
}

// How many groups from `from` on make `total` digits, or 0.
size_t groups_of(const Groups& groups, size_t from, size_t total) {
    size_t digits = 0;
    for (size_t i = from; i < groups.count && digits < total; ++i) {
        digits += groups.group[i].digits;
        if (digits == total) return i + 1 - from;
    }
    return 0;
}

// Groups from `from` on that are a Chinese number without its country code; `used` is set to how many.
bool is_chinese_phone(const Groups& groups, size_t from, bool labelled, bool after_country, size_t& used) {
    if (from >= groups.count) return false;
    used = groups_of(groups, from, 11);
    if (used > 0 && is_chinese_mobile(groups.digits(from, used))) {
        if (used == 1 || labelled || after_country || groups.have(from, {3, 4, 4})) return true;
        return used == 2 && groups.inner(from, 2) == Separator::HYPHEN && groups.group[from].digits == 3;
    }
    std::string_view area = groups.digits(from, 1);
    const bool zero = area[0] == '0';
    if (zero) area.remove_prefix(1);
    if (!zero && !after_country) return false;
    if (is_chinese_area(area)) {
        for (const size_t local : {size_t{8}, size_t{7}}) {
            const size_t parts = groups_of(groups, from + 1, local);
            if (parts == 0 || parts > 2) continue;
            if (!after_country && !is_chinese_local(area, groups.digits(from + 1, parts))) continue;
            used = 1 + parts;
            return parts == 1 || labelled || after_country || groups.open || groups.group[from + 1].before != Separator::SPACE;
        }
        return false;
    }
    if (!labelled && !after_country) return false;
    used = 1;  // in one piece
    for (const size_t length : {size_t{2}, size_t{3}}) {
        if (area.size() <= length) continue;
        if (is_chinese_area(area.substr(0, length)) && is_chinese_local(area.substr(0, length), area.substr(length))) {
            return true;
        }
    }
    return false;
}

// With "-801", "转801" or " ext. 801".
size_t with_extension(std::string_view text, size_t end) {
    size_t at = end;
    if (has_at(text, at, "-")) {
        at += 1;
    } else if (has_at(text, at, "转")) {
        at += 3;
    } else {
        if (byte_at(text, at) == ' ') ++at;
        if (has_at(text, at, "ext")) {
            at += 3;
        } else if (byte_at(text, at) == 'x') {
            at += 1;
        } else {
            return end;
        }
        if (byte_at(text, at) == '.') ++at;
        if (byte_at(text, at) == ' ') ++at;
    }
    const size_t digits = at;
    while (at < text.size() && at < digits + 6 && is_digit(text[at])) ++at;
    return at == digits || at == digits + 6 || is_letter(byte_at(text, at)) ? end : at;
}

PersonalSpan phone(std::string_view text, const Groups& groups, size_t used, Separator inner) {
    const size_t end = with_extension(text, groups.end(used));
    if (!ends_number(text, end, inner)) return {};
    return {PersonalKind::PHONE, groups.begin, end};
}

// '+' and a country code.
PersonalSpan find_international(std::string_view text, const Groups& groups) {
    // A sign between two operands, or in a time zone, is no prefix.
    const char before = byte_before(text, groups.begin);
    if (is_alnum(before) || before == ')' || before == ']' || before == '}' || before == '_' || before == '.') return {};
    const std::string_view all = groups.digits(0, groups.count);
    if (!is_country_code(all)) return {};
    size_t used = 0;
    if (all.substr(0, 2) == "86") {
        if (groups.group[0].digits == 2) {
            if (is_chinese_phone(groups, 1, false, true, used)) return phone(text, groups, used + 1, Separator::NONE);
            return {};
        }
        used = groups_of(groups, 0, 13);
        if (used > 0 && is_chinese_mobile(groups.digits(0, used).substr(2))) {
            return phone(text, groups, used, Separator::NONE);
        }
        const std::string_view local = groups.digits(0, 1).substr(2);
        if (local.size() == 10 && is_chinese_area(local.substr(0, 2))) return phone(text, groups, 1, Separator::NONE);
        return {};
    }
    if (all[0] == '1') {
        used = groups_of(groups, 0, 11);
        if (used == 0 || !is_north_american(groups.digits(0, used).substr(1))) return {};
        return phone(text, groups, used, Separator::NONE);
    }
    size_t digits = 0;
    for (size_t i = 0; i < groups.count && digits + groups.group[i].digits <= 13; ++i, ++used) {
        digits += groups.group[i].digits;
    }
    if (used == 0 || digits < (used == 1 ? 10u : 9u)) return {};
    if (used > 1 && groups.inner(0, used) == Separator::DOT && used == 2) return {};  // a decimal
    if (is_amount(text, groups.begin, groups.end(used))) return {};
    return phone(text, groups, used, Separator::NONE);
}

PersonalSpan find_domestic(std::string_view text, const Groups& groups) {
    const Label label = label_before(text, groups.begin);
    if (label == Label::OTHER) return {};
    const bool labelled = label == Label::PHONE;
    const auto whole = [&](size_t used, Separator inner) -> PersonalSpan {
        if (!begins_number(text, groups.begin, inner)) return {};
        const PersonalSpan found = phone(text, groups, used, inner);
        if (!labelled && (is_amount(text, found.begin, found.end) || is_argument(text, found.begin, found.end))) return {};
        return found;
    };
    size_t used = 0;
    const std::string_view first = groups.digits(0, 1);
    if ((first == "86" || first == "0086") && is_chinese_phone(groups, 1, labelled, true, used)) {
        return whole(used + 1, groups.inner(0, used + 1));
    }
    if (first.size() == 13 && first.substr(0, 2) == "86" && is_chinese_mobile(first.substr(2))) return whole(1, Separator::NONE);
    if (first.size() == 15 && first.substr(0, 4) == "0086" && is_chinese_mobile(first.substr(4))) {
        return whole(1, Separator::NONE);
    }
    if (is_chinese_phone(groups, 0, labelled, false, used)) return whole(used, groups.inner(0, used));
    // Chinese service numbers.
    if (first.substr(0, 3) == "400" || first.substr(0, 3) == "800") {
        used = groups_of(groups, 0, 10);
        if (used > 0 && (labelled || (used == 3 && groups.inner(0, 3) == Separator::HYPHEN))) {
            return whole(used, groups.inner(0, used));
        }
    }
    const size_t trunk = first == "1" && groups.count > 1 ? 1 : 0;
    if (groups.have(trunk, {3, 3, 4}) && is_north_american(groups.digits(trunk, 3))) {
        return whole(trunk + 3, groups.inner(trunk, 3));
    }
    if (!labelled) return {};
    if (groups.have(0, {10}) && is_north_american(first)) return whole(1, Separator::NONE);
    // Elsewhere: "02-2345-6789" in Taipei.
    if (first[0] == '0' && (groups.have(0, {2, 4, 4}) || groups.have(0, {2, 3, 4}))) return whole(3, groups.inner(0, 3));
    if (first[0] == '0' && (groups.have(0, {2, 7}) || groups.have(0, {2, 8}))) return whole(2, Separator::HYPHEN);
    if (groups.have(0, {4, 4}) || groups.have(0, {3, 4})) used = 2;
    else if (groups.have(0, {7}) || groups.have(0, {8})) used = 1;
    else return {};
    return first[0] >= '2' ? whole(used, groups.inner(0, used)) : PersonalSpan{};
}

}  // namespace

int digit_at(std::string_view text, size_t at, size_t& bytes) {
    if (at >= text.size()) return -1;
    bytes = 1;
    if (is_digit(text[at])) return text[at] - '0';
    bytes = 3;
    if (at + 3 > text.size() || text[at] != '\xEF' || text[at + 1] != '\xBC') return -1;
    const int digit = static_cast<uint8_t>(text[at + 2]) - 0x90;
    return digit >= 0 && digit <= 9 ? digit : -1;
}

PersonalSpan find_number(std::string_view text, size_t at, bool old_id_numbers) {
    const Groups groups = read_groups(text, at);
    if (groups.count == 0 || groups.digits(0, groups.count).size() < 7) return {};
    if (groups.plus) return find_international(text, groups);
    PersonalSpan found = find_id_number(text, groups, old_id_numbers);
    if (!found) found = find_bank_card(text, groups);
    if (!found) found = find_domestic(text, groups);
    return found;
}

}  // namespace mindllm
