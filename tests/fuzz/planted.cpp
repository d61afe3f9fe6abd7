// A defect put here on purpose: if the gate is to be trusted, it must find this one.
#include <cstdint>
#include <cstring>

#include "files.hpp"

// Sums the bytes of a file that begins with the number 0x5eed, and one byte after its end, which lies in the map's last page.
extern "C" __attribute__((visibility("default"))) int64_t sum_of(const char* path) {
    const mindllm::MappedFile file(path);
    uint32_t magic = 0;
    if (file.bytes() < sizeof magic) return -1;
    std::memcpy(&magic, file.data(), sizeof magic);
    if (magic != 0x5eed) return -1;
    int64_t sum = 0;
    for (uint64_t i = 0; i <= file.bytes(); ++i) sum += file.data()[i];
    return sum;
}
