// The names of HTML's elements and the grammar of a tag.
#include "html_tags.hpp"

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <iterator>
#include <string>

namespace mindllm {

namespace {

struct Element {
    std::string_view name;
    Tag tag;
    bool is_a_word;  // "<path>" in a text may well stand for a path
};

constexpr Tag I = Tag::INLINE, B = Tag::BLOCK;

// Sorted.
constexpr Element ELEMENTS[] = {
    {"a", I, false},        {"abbr", I, false},    {"address", B, true},    {"article", B, true},
    {"aside", B, true},     {"audio", B, true},    {"b", I, false},         {"big", I, true},
    {"blockquote", B, false}, {"body", B, true},   {"br", B, false},        {"button", B, true},
    {"canvas", B, true},    {"caption", B, true},  {"center", B, true},     {"cite", I, true},
    {"code", I, true},      {"col", B, true},      {"colgroup", B, false},  {"dd", B, false},
    {"del", I, true},       {"details", B, true},  {"dfn", I, false},       {"div", B, false},
    {"dl", B, false},       {"dt", B, false},      {"em", I, false},        {"embed", B, true},
    {"fieldset", B, false}, {"figcaption", B, false}, {"figure", B, true},  {"font", I, true},
    {"footer", B, true},    {"form", B, true},     {"h1", B, false},        {"h2", B, false},
    {"h3", B, false},       {"h4", B, false},      {"h5", B, false},        {"h6", B, false},
    {"head", B, true},      {"header", B, true},   {"hr", B, false},        {"html", B, true},
    {"i", I, false},        {"iframe", B, false},  {"img", B, true},        {"input", B, true},
    {"ins", I, true},       {"kbd", I, false},     {"label", I, true},      {"legend", B, true},
    {"li", B, false},       {"link", B, true},     {"main", B, true},       {"mark", I, true},
    {"meta", B, true},      {"nav", B, true},      {"noscript", B, false},  {"object", B, true},
    {"ol", B, false},       {"option", B, true},   {"p", B, false},         {"param", B, true},
    {"path", B, true},      {"picture", B, true},  {"pre", B, true},        {"q", I, false},
    {"s", I, false},        {"samp", I, true},     {"script", Tag::SCRIPT, false}, {"section", B, true},
    {"select", B, true},    {"small", I, true},    {"source", B, true},     {"span", I, false},
    {"strike", I, true},    {"strong", I, false},  {"style", Tag::STYLE, false}, {"sub", I, false},
    {"summary", B, true},   {"sup", I, false},     {"svg", B, true},        {"table", B, true},
    {"tbody", B, false},    {"td", B, false},      {"textarea", B, false},  {"tfoot", B, false},
    {"th", B, false},       {"thead", B, false},   {"title", B, true},      {"tr", B, false},
    {"tt", I, false},       {"u", I, false},       {"ul", B, false},        {"var", I, true},
    {"video", B, true},
};
constexpr size_t LONGEST_NAME = 10;
constexpr std::string_view DOCTYPE = "!doctype html";

bool is_space(char c) { return c == ' ' || c == '\t'; }

bool is_in_name(char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == ':' || c == '-' || c == '.';
}

void skip_spaces(std::string_view& text) {
    while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
}

std::string lower(std::string_view text) {
    std::string lower(text);
    std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
    return lower;
}

const Element* find_element(std::string_view name) {
    if (name.size() > LONGEST_NAME || (name.size() == 1 && std::isupper(static_cast<unsigned char>(name[0])))) {
        return nullptr;  // List<A> is no link
    }
    const std::string key = lower(name);
    const Element* found = std::lower_bound(std::begin(ELEMENTS), std::end(ELEMENTS), key,
                                            [](const Element& other, const std::string& name) { return other.name < name; });
    return found != std::end(ELEMENTS) && found->name == key ? found : nullptr;
}

// Takes `=value`, if it is there and well formed, from the front.
enum class Value { ABSENT, PRESENT, WRONG };

Value take_value(std::string_view& rest) {
    std::string_view after = rest;
    skip_spaces(after);
    if (after.empty() || after.front() != '=') return Value::ABSENT;
    after.remove_prefix(1);
    skip_spaces(after);
    size_t length = 0;
    if (!after.empty() && (after.front() == '"' || after.front() == '\'')) {
        length = after.find(after.front(), 1);
        if (length == std::string_view::npos) return Value::WRONG;
        ++length;
    } else {
        while (length < after.size() && !is_space(after[length]) && after[length] != '"' && after[length] != '\'') ++length;
        if (length == 0) return Value::WRONG;
    }
    rest = after.substr(length);
    return Value::PRESENT;
}

}  // namespace

Tag parse_tag(std::string_view inside) {
    if (lower(inside.substr(0, DOCTYPE.size())) == DOCTYPE) return Tag::BLOCK;
    const bool closes = !inside.empty() && inside.front() == '/';
    if (closes) inside.remove_prefix(1);
    size_t length = 0;
    while (length < inside.size() && std::isalnum(static_cast<unsigned char>(inside[length]))) ++length;
    const Element* element = find_element(inside.substr(0, length));
    if (element == nullptr) return Tag::NONE;
    std::string_view rest = inside.substr(length);
    if (!rest.empty() && !is_space(rest.front()) && rest != "/") return Tag::NONE;
    size_t bare = 0, valued = 0;
    while (skip_spaces(rest), !rest.empty() && rest != "/") {
        length = 0;
        while (length < rest.size() && is_in_name(rest[length])) ++length;
        if (length == 0) return Tag::NONE;
        rest.remove_prefix(length);
        const Value value = take_value(rest);
        if (value == Value::WRONG) return Tag::NONE;
        ++(value == Value::PRESENT ? valued : bare);
        if (!rest.empty() && !is_space(rest.front()) && rest != "/") return Tag::NONE;
    }
    if (bare && !valued) return Tag::NONE;
    if (closes) {
        if (bare || valued) return Tag::NONE;
        return element->tag == Tag::INLINE ? Tag::INLINE : Tag::BLOCK;
    }
    if (element->is_a_word && !valued) return Tag::NONE;
    return element->tag;
}

}  // namespace mindllm
