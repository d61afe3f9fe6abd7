// Megatron's token file format: the integer types a file may hold, and the layout of its .idx header.
//
// .bin  the tokens of all sequences, back to back
// .idx  magic (9 bytes), u64 version, u8 type code, u64 sequences, u64 documents + 1,
//       int32 length of each sequence in tokens, int64 offset of each sequence in bytes,
//       int64 first sequence of each document, closed by the number of sequences
// Everything is little-endian and unpadded, so nothing past the magic is aligned: read it with `load`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>

namespace mindllm {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "token files are little-endian and are mapped as they are");

constexpr char kIndexMagic[9] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', '\0', '\0'};
constexpr uint64_t kIndexVersion = 1;
constexpr size_t kVersionAt = 9;
constexpr size_t kTypeAt = 17;
constexpr size_t kSequencesAt = 18;
constexpr size_t kDocumentsAt = 26;
constexpr size_t kIndexHeaderBytes = 34;

// The values are Megatron's type codes. Its codes 6 and 7 are floats, which are no tokens.
enum class TokenType : uint8_t { kU8 = 1, kI8 = 2, kI16 = 3, kI32 = 4, kI64 = 5, kU16 = 8 };

struct TokenTypeInfo {
    TokenType type;
    std::string_view name;  // numpy's
    int64_t bytes;
};

constexpr TokenTypeInfo kTokenTypes[] = {
    {TokenType::kU8, "uint8", 1},  {TokenType::kI8, "int8", 1},   {TokenType::kI16, "int16", 2},
    {TokenType::kI32, "int32", 4}, {TokenType::kI64, "int64", 8}, {TokenType::kU16, "uint16", 2},
};

inline std::optional<TokenTypeInfo> token_type_from_code(uint8_t code) {
    for (const TokenTypeInfo& info : kTokenTypes) {
        if (static_cast<uint8_t>(info.type) == code) return info;
    }
    return std::nullopt;
}

inline std::optional<TokenTypeInfo> token_type_from_name(std::string_view name) {
    for (const TokenTypeInfo& info : kTokenTypes) {
        if (info.name == name) return info;
    }
    return std::nullopt;
}

// Calls `function` with a zero of the C++ type of `type`.
template <typename Function>
auto with_token_type(TokenType type, Function&& function) {
    switch (type) {
        case TokenType::kU8: return function(uint8_t{});
        case TokenType::kI8: return function(int8_t{});
        case TokenType::kI16: return function(int16_t{});
        case TokenType::kI64: return function(int64_t{});
        case TokenType::kU16: return function(uint16_t{});
        case TokenType::kI32: break;
    }
    return function(int32_t{});
}

// Reads a T from an address of any alignment.
template <typename T>
T load(const unsigned char* address) {
    T value;
    std::memcpy(&value, address, sizeof(T));
    return value;
}

}  // namespace mindllm
