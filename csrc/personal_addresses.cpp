// The forms of addresses, and which of them belong to nobody.
#include "personal_addresses.hpp"

#include <algorithm>
#include <array>

#include "personal_context.hpp"

namespace mindllm {

namespace {

constexpr size_t MAX_LOCAL = 64, MAX_DOMAIN = 253, MAX_LABEL = 63;  // RFC 5321

// Names of files, not of domains: "logo@2x.png".
constexpr std::string_view FILE_SUFFIXES[] = {
    "png", "jpg", "jpeg", "gif", "webp", "svg", "bmp", "css", "html", "htm", "json", "xml", "php", "jsx", "tsx", "txt",
    "pdf", "zip", "exe", "dll", "yaml", "yml", "toml", "whl", "jar", "vue", "scss",
};
// RFC 2606 and 6761, and what people write in examples.
constexpr std::string_view RESERVED_DOMAINS[] = {"example", "test", "invalid", "localhost", "local"};
constexpr std::string_view RESERVED_NAMES[] = {"example", "yourdomain", "mydomain", "domain", "yourcompany", "test"};

bool is_local_byte(char byte) {
    return is_alnum(byte) || byte == '.' || byte == '_' || byte == '%' || byte == '+' || byte == '-';
}

char lower(char byte) { return byte >= 'A' && byte <= 'Z' ? static_cast<char>(byte + ('a' - 'A')) : byte; }

bool equals(std::string_view text, std::string_view lower_case) {
    return text.size() == lower_case.size() &&
           std::equal(text.begin(), text.end(), lower_case.begin(), [](char a, char b) { return lower(a) == b; });
}

template <size_t N>
bool is_one_of(std::string_view text, const std::string_view (&words)[N]) {
    return std::any_of(std::begin(words), std::end(words), [text](std::string_view word) { return equals(text, word); });
}

// Labels of a domain from `at` on; the last two are kept.
struct Domain {
    size_t end;
    int labels;
    std::string_view last, second;
};

Domain read_domain(std::string_view text, size_t at) {
    Domain domain{at, 0, {}, {}};
    const size_t limit = std::min(text.size(), at + MAX_DOMAIN);
    while (at < limit) {
        const size_t begin = at;
        while (at < limit && (is_alnum(text[at]) || text[at] == '-')) ++at;
        size_t end = at;
        while (end > begin && text[end - 1] == '-') --end;  // a dash of the sentence
        if (end == begin || end - begin > MAX_LABEL || text[begin] == '-') break;
        domain.second = domain.last;
        domain.last = text.substr(begin, end - begin);
        domain.end = end;
        ++domain.labels;
        if (end < at || byte_at(text, at) != '.') break;
        ++at;
    }
    return domain;
}

int octet_at(std::string_view text, size_t& at) {
    const size_t begin = at;
    int value = 0;
    while (at < text.size() && at < begin + 4 && is_digit(text[at])) value = 10 * value + (text[at++] - '0');
    const size_t digits = at - begin;
    return digits == 0 || digits > 3 || value > 255 || (digits > 1 && text[begin] == '0') ? -1 : value;
}

using Octets = std::array<int, 4>;

bool read_octets(std::string_view text, size_t& at, Octets& octets) {
    for (size_t i = 0; i < octets.size(); ++i) {
        if (i > 0 && byte_at(text, at++) != '.') return false;
        octets[i] = octet_at(text, at);
        if (octets[i] < 0) return false;
    }
    return true;
}

// RFC 6890: this network, private, shared, loopback, link-local, documentation, benchmarking, multicast and beyond.
bool is_reserved(const Octets& o) {
    return o[0] == 0 || o[0] == 10 || o[0] == 127 || o[0] >= 224 || (o[0] == 172 && o[1] >= 16 && o[1] < 32) ||
           (o[0] == 192 && (o[1] == 168 || (o[1] == 0 && (o[2] == 0 || o[2] == 2)))) || (o[0] == 169 && o[1] == 254) ||
           (o[0] == 100 && o[1] >= 64 && o[1] < 128) || (o[0] == 198 && (o[1] == 18 || o[1] == 19)) ||
           (o[0] == 198 && o[1] == 51 && o[2] == 100) || (o[0] == 203 && o[1] == 0 && o[2] == 113);
}

// Whether four octets, or what looks like them, end there.
bool ends_with_octets(std::string_view text, size_t end) {
    size_t begin = end, dots = 0;
    while (begin > 0 && end - begin < 15 && (is_digit(text[begin - 1]) || text[begin - 1] == '.')) {
        dots += text[--begin] == '.';
    }
    return dots == 3;
}

bool begins_ipv4(std::string_view text, size_t at) {
    const char before = byte_before(text, at), second = byte_before(text, at > 0 ? at - 1 : 0);
    if (is_alnum(before) || before == '_' || before == '^' || before == '~') return false;
    if (before == '-' && ends_with_octets(text, at - 1)) return true;  // from one address to another
    if (before == '.' || before == '-' || before == '\\') return !is_alnum(second);
    if (before == '/') return !is_letter(second);  // "Chrome/1.2.3.4"
    if (before == '=') return second != '=' && second != '>' && second != '<' && second != '~' && second != '!';
    return static_cast<uint8_t>(before) < 0xC3 || static_cast<uint8_t>(before) > 0xDF;
}

bool ends_ipv4(std::string_view text, size_t end) {
    const char next = byte_at(text, end), second = byte_at(text, end + 1);
    if (next == '.') return !is_alnum(second);
    if (next == '-') {
        size_t at = end + 1;
        Octets octets;
        return !is_alnum(second) || read_octets(text, at, octets);  // from one address to another
    }
    return !is_alnum(next) && next != '_' && next != '+' && !has_at(text, end, "版");
}

bool is_hex(char byte) { return is_digit(byte) || (byte >= 'a' && byte <= 'f') || (byte >= 'A' && byte <= 'F'); }

}  // namespace

AddressSpan find_email(std::string_view text, size_t at, size_t floor) {
    size_t begin = at;
    while (begin > floor && at - begin <= MAX_LOCAL && is_local_byte(text[begin - 1])) --begin;
    if (at - begin > MAX_LOCAL) return {};
    while (begin < at && !is_alnum(text[begin])) ++begin;
    if (begin == at || text[at - 1] == '.') return {};
    const Domain domain = read_domain(text, at + 1);
    const std::string_view top = domain.last;
    if (domain.labels < 2 || top.size() < 2 || top.size() > 18 || !std::all_of(top.begin(), top.end(), is_letter)) return {};
    const char next = byte_at(text, domain.end);
    if (is_one_of(top, FILE_SUFFIXES) || next == '@' || next == '_' || next == '(') return {};
    const std::string_view local = text.substr(begin, at - begin);
    const bool kept = is_one_of(top, RESERVED_DOMAINS) || is_one_of(domain.second, RESERVED_NAMES) || equals(local, "git");
    return {{PersonalKind::EMAIL, begin, domain.end}, kept};
}

AddressSpan find_ipv4(std::string_view text, size_t at) {
    const size_t begin = at;
    Octets octets;
    if (!read_octets(text, at, octets) || !begins_ipv4(text, begin) || !ends_ipv4(text, at)) return {};
    const Label label = label_before(text, begin);
    if (label == Label::VERSION || label == Label::OTHER) return {};
    // Sections, versions and made-up addresses have small numbers; of all addresses, one in 25,000 does.
    if (*std::max_element(octets.begin(), octets.end()) < 20) return {};
    return {{PersonalKind::IP, begin, at}, is_reserved(octets)};
}

AddressSpan find_ipv6(std::string_view text, size_t at, size_t floor) {
    size_t begin = at;
    while (begin > floor && at - begin < 4 && is_hex(text[begin - 1])) --begin;
    const char before = begin > floor ? text[begin - 1] : '\0';
    if (is_alnum(before) || before == '.' || before == '_' || before == '-') return {};
    if (before == ':' && (is_hex(byte_before(text, begin - 1)) || byte_before(text, begin - 1) == ':')) return {};
    at = begin;
    int groups = 0, compressed = 0;
    bool long_group = false, has_digit = false;
    size_t end = begin;
    while (groups < 8) {
        size_t hex = at;
        while (hex < text.size() && hex < at + 5 && is_hex(text[hex])) has_digit |= is_digit(text[hex++]);
        if (hex - at > 4) return {};
        if (hex > at) {
            ++groups;
            long_group |= hex - at > 2;
            end = at = hex;
        } else if (at != begin && !has_before(text, at, "::")) {
            break;  // a single ':' that nothing follows: of the sentence
        }
        if (byte_at(text, at) != ':') break;
        ++at;
        if (byte_at(text, at) == ':') {
            if (++compressed > 1) return {};
            end = ++at;
        }
    }
    if (compressed == 1 ? groups < 2 || groups > 7 : groups != 8) return {};
    const char next = byte_at(text, end);
    if (is_alnum(next) || next == '_' || next == '-' || (next == ':' && is_alnum(byte_at(text, end + 1)))) return {};
    if (next == '.' && is_alnum(byte_at(text, end + 1))) return {};
    if (!long_group || !has_digit) return {};  // hours and bytes have two digits, names in programs have none
    // Global addresses begin with 2 or 3 and have four digits there (RFC 4291); those of one network with fc, fd or fe8.
    const std::string_view first = text.substr(begin, 4);
    if (first.find(':') != std::string_view::npos) return {};
    const bool kept = equals(first.substr(0, 2), "fc") || equals(first.substr(0, 2), "fd") || equals(first, "fe80") ||
                      has_at(text, begin, "2001:db8:") || has_at(text, begin, "2001:DB8:") ||
                      has_at(text, begin, "2001:0db8:") || has_at(text, begin, "2001:0DB8:");
    if (first[0] != '2' && first[0] != '3' && !kept) return {};
    return {{PersonalKind::IP, begin, end}, kept};
}

}  // namespace mindllm
