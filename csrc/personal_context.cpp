// The characters and the words; each look reads a bounded number of bytes.
#include "personal_context.hpp"

#include <algorithm>
#include <array>
#include <string>

namespace mindllm {

namespace {

constexpr size_t LABEL_BYTES = 40;

// In lower case. Latin ones are whole words.
constexpr std::string_view PHONE_LABELS[] = {
    "电话", "电话号", "手机", "手机号", "热线", "传真", "座机", "固话", "联系方式", "致电", "拨打", "微信同号", "tel",
    "phone", "telephone", "mobile", "cell", "fax", "call", "whatsapp", "hotline", "mob", "cellphone", "telefon", "sms",
    "ph",
};
constexpr std::string_view OTHER_LABELS[] = {
    "订单", "单号", "编号", "流水号", "货号", "批号", "序列号", "序号", "条形码", "条码", "编码", "代码", "运单",
    "合同号", "发票号", "文号", "书号", "专利号", "案号", "注册号", "税号", "群号", "群", "学号", "工号", "证书号", "设备号",
    "车架号", "型号", "股东号", "金额", "总额", "时间戳", "邮编", "邮政编码", "qq", "order", "orders", "invoice", "tracking",
    "serial", "sku", "id", "uid", "ref", "barcode", "ean", "upc", "imei", "seed", "hash", "pmid", "isbn", "issn", "doi",
    "arxiv", "ticket", "timestamp", "epoch", "usd", "rmb", "cny", "eur", "pid", "patent", "batch", "lot", "bytes",
    "parcel", "shipment", "transaction", "receipt", "reference", "gtin", "oclc", "lccn",
};
constexpr std::string_view VERSION_LABELS[] = {
    "版本", "版本号", "版", "第", "图", "表", "式", "节", "章", "章节", "条款", "固件", "内核", "version", "ver", "v", "release",
    "rev", "revision", "firmware", "build", "update", "section", "sec", "chapter", "fig", "figure", "table", "eq",
    "equation", "theorem", "lemma", "java", "jdk", "python", "driver", "patch", "oid", "kernel", "appendix", "item",
    "versions", "sections", "upgrade", "assembly", "chrome", "firefox", "windows", "clause", "step", "rule",
};
// What stands between a label and the number, and says nothing itself.
constexpr std::string_view FILLERS[] = {
    "码", "为", "是", "：", "（", "【", "】", "「", "“", "＃", "№", "》", "number", "no", "at", "is",
};
constexpr std::string_view FILLER_BYTES = " \t:#.(=\"'[]*<>|&`_";
// After a number, these make it an amount.
constexpr std::string_view UNITS[] = {
    "元", "万", "亿", "美", "块", "吨", "公", "克", "米", "股", "倍", "次", "个", "％", "℃", "×", "÷", "²", "°",
};
constexpr std::string_view WORD_UNITS[] = {
    "usd", "rmb", "cny", "eur", "hkd", "yuan", "dollars", "bytes", "byte", "bits", "tons", "km", "kg", "ms", "ns",
    "people", "views", "euros", "pounds", "元", "美元", "万", "亿",
};
constexpr std::string_view OPERATORS = "+*=^/<>";

char lower(char byte) { return byte >= 'A' && byte <= 'Z' ? static_cast<char>(byte + ('a' - 'A')) : byte; }

// A letter outside of ASCII: of two bytes (Latin, Greek, Cyrillic, ...), or full-width.
bool is_wide_letter(std::string_view text, size_t at) {
    const auto byte = [&](size_t i) { return static_cast<uint8_t>(byte_at(text, at + i)); };
    if (byte(0) >= 0xC3 && byte(0) <= 0xDF) return !(byte(0) == 0xC3 && (byte(1) == 0x97 || byte(1) == 0xB7));
    if (byte(0) != 0xEF) return false;
    return (byte(1) == 0xBC && byte(2) >= 0xA1 && byte(2) <= 0xBA) || (byte(1) == 0xBD && byte(2) >= 0x81 && byte(2) <= 0x9A);
}

bool is_wide_digit(std::string_view text, size_t at) {
    return has_at(text, at, "\xEF\xBC") && static_cast<uint8_t>(byte_at(text, at + 2)) >= 0x90 &&
           static_cast<uint8_t>(byte_at(text, at + 2)) <= 0x99;
}

size_t character_before(std::string_view text, size_t at) {
    if (at == 0) return 0;
    --at;
    while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
    return at;
}

// "?key=" or "&key=" before `at`, which is behind the '='.
bool is_in_query(std::string_view text, size_t at) {
    size_t key = at - 1;
    const size_t least = key > 32 ? key - 32 : 0;
    while (key > least && (is_alnum(text[key - 1]) || text[key - 1] == '_' || text[key - 1] == '-')) --key;
    const char before = byte_before(text, key);
    return before == '?' || before == '&';
}

template <size_t N>
bool ends_with_one_of(std::string_view words, const std::string_view (&labels)[N]) {
    return std::any_of(std::begin(labels), std::end(labels), [words](std::string_view label) {
        if (!has_before(words, words.size(), label)) return false;
        return !is_letter(label[0]) || !is_letter(byte_before(words, words.size() - label.size()));
    });
}

// Without fillers at its end.
std::string_view stripped(std::string_view words) {
    for (bool again = true; again && !words.empty();) {
        again = false;
        if (FILLER_BYTES.find(words.back()) != std::string_view::npos) {
            words.remove_suffix(1);
            again = true;
            continue;
        }
        for (const std::string_view filler : FILLERS) {
            if (!has_before(words, words.size(), filler)) continue;
            if (is_letter(filler[0]) && is_letter(byte_before(words, words.size() - filler.size()))) continue;
            words.remove_suffix(filler.size());
            again = true;
            break;
        }
    }
    return words;
}

}  // namespace

bool begins_number(std::string_view text, size_t begin, Separator inner) {
    if (begin == 0) return true;
    const char before = text[begin - 1], second = byte_before(text, begin - 1);
    switch (before) {
        case ' ':
            return !(inner == Separator::SPACE && is_digit(second));
        case '.':
        case '-':
        case '\\':
            return !is_alnum(second);
        case '/':
            return !is_letter(second) && second != '/';
        case ':':
            return !is_digit(second);
        case '*':
            return !is_alnum(second) && second != ')';
        case '=':
            return !is_in_query(text, begin) && !is_digit(second) && second != ')';
        case '_':
        case '#':
        case '$':
        case '%':
        case '&':
        case '@':
        case '^':
        case '~':
        case '+':
            return false;
        default:
            break;
    }
    if (static_cast<uint8_t>(before) < 0x80) return !is_alnum(before);
    const size_t at = character_before(text, begin);
    for (const std::string_view sign : {"£", "€", "¥", "￥", "×", "÷", "§", "√"}) {
        if (has_at(text, at, sign)) return false;
    }
    return !is_wide_letter(text, at) && !is_wide_digit(text, at);
}

bool ends_number(std::string_view text, size_t end, Separator inner) {
    const char next = byte_at(text, end), second = byte_at(text, end + 1);
    switch (next) {
        case ' ':
            return !(inner == Separator::SPACE && is_digit(second));
        case '.':
        case '-':
            return !is_alnum(second);
        case '/':
            return !is_letter(second);
        case ':':
            return !is_digit(second);
        case '_':
        case '@':
        case '%':
            return false;
        default:
            break;
    }
    if (static_cast<uint8_t>(next) < 0x80) return !is_alnum(next);
    return !is_wide_letter(text, end) && !is_wide_digit(text, end);
}

bool is_amount(std::string_view text, size_t begin, size_t end) {
    for (const std::string_view unit : UNITS) {
        if (has_at(text, end, unit)) return true;
    }
    const size_t after = byte_at(text, end) == ' ' ? end + 1 : end;
    const char next = byte_at(text, after);
    if (next == '=' || next == '^' || next == '*') return byte_at(text, after + 1) != next;  // ** is Markdown
    if (after > end && OPERATORS.find(next) != std::string_view::npos && next != '\0' && next != '<' && next != '/') {
        return true;
    }
    if (has_at(text, after, "×") || has_at(text, after, "÷")) return true;
    std::array<char, 8> word{};
    for (size_t i = 0; i < word.size(); ++i) word[i] = lower(byte_at(text, after + i));
    const std::string_view following(word.data(), word.size());
    for (const std::string_view unit : WORD_UNITS) {
        if (has_at(following, 0, unit) && (!is_letter(unit[0]) || !is_letter(byte_at(following, unit.size())))) return true;
    }
    // An operator before it.
    size_t before = begin;
    if (byte_before(text, before) == ' ') --before;
    const char sign = byte_before(text, before);
    if (sign == '+' || sign == '^') return true;
    if (sign == '=') {
        size_t left = before - 1;
        if (byte_before(text, left) == ' ') --left;
        const char operand = byte_before(text, left);
        return is_digit(operand) || operand == ')' || operand == '}';
    }
    return has_before(text, before, "×") || has_before(text, before, "÷") || has_before(text, before, "≈");
}

bool is_argument(std::string_view text, size_t begin, size_t end) {
    const char name = byte_before(text, begin > 0 ? begin - 1 : 0);
    return byte_before(text, begin) == '(' && (is_alnum(name) || name == '_') && byte_at(text, end) == ')';
}

Label label_before(std::string_view text, size_t begin) {
    size_t from = begin > LABEL_BYTES ? begin - LABEL_BYTES : 0;
    while (from < begin && (static_cast<uint8_t>(text[from]) & 0xC0) == 0x80) ++from;
    std::string words(text.substr(from, begin - from));
    std::transform(words.begin(), words.end(), words.begin(), lower);
    const std::string_view bare = stripped(words);
    if (ends_with_one_of(bare, PHONE_LABELS)) return Label::PHONE;
    if (ends_with_one_of(bare, OTHER_LABELS)) return Label::OTHER;
    if (ends_with_one_of(bare, VERSION_LABELS)) return Label::VERSION;
    // A number that is nothing but called one: "No. 123".
    const std::string_view rest = std::string_view(words).substr(bare.size());
    for (const std::string_view filler : {"no.", "#", "№", "＃"}) {
        if (rest.find(filler) != std::string_view::npos) return Label::OTHER;
    }
    return Label::NONE;
}

}  // namespace mindllm
