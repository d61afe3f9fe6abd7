// E-mail and IP addresses.
#pragma once

#include <string_view>

#include "personal_data.hpp"

namespace mindllm {

// A span of an address that is found. `kept`: it belongs to nobody (a private network, a documentation domain).
struct AddressSpan {
    PersonalSpan span;
    bool kept = false;
};

// The e-mail address around the '@' at `at`. Nothing before `floor` is read.
AddressSpan find_email(std::string_view text, size_t at, size_t floor);
// The IPv4 address that begins at `at`, a digit.
AddressSpan find_ipv4(std::string_view text, size_t at);
// The IPv6 address whose first ':' is at `at`.
AddressSpan find_ipv6(std::string_view text, size_t at, size_t floor);

}  // namespace mindllm
