// What the fuzzers' build of csrc/ needs besides: g++'s coverage handed to libFuzzer, and memory maps with exact ends.
//
// g++ knows only `trace-pc`, a call at each basic block; libFuzzer wants a counter for each block. And the address
// sanitizer knows what lies around a buffer, but not around a map: here each is set between two pages that cannot be
// read, and what follows the file in its last page is poisoned. Linked with -Wl,--wrap=mmap,--wrap=munmap.
#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

namespace {

constexpr size_t kSlots = size_t{1} << 14;  // a power of two, several times the blocks of csrc/

// libFuzzer's table of code addresses, in its layout. It is filled as blocks are met.
struct Block {
    uintptr_t address;
    uintptr_t is_function_entry;
};

uint8_t counters[kSlots];
Block blocks[kSlots];

size_t page_bytes() {
    static const auto bytes = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
    return bytes;
}

size_t whole_pages(size_t bytes) { return (bytes + page_bytes() - 1) / page_bytes() * page_bytes(); }

}  // namespace

extern "C" {

void __sanitizer_cov_8bit_counters_init(uint8_t* start, uint8_t* stop);
void __sanitizer_cov_pcs_init(const uintptr_t* start, const uintptr_t* stop);

// Hidden, so that libFuzzer's own of this name, which does nothing, is not taken. Counters wrap, as libFuzzer's do.
__attribute__((visibility("hidden"))) void __sanitizer_cov_trace_pc() {
    const auto address = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
    size_t slot = (address * 0x9E3779B97F4A7C15u) >> 50;
    while (blocks[slot].address != address) {
        if (blocks[slot].address == 0) {
            blocks[slot].address = address;
            break;
        }
        slot = (slot + 1) % kSlots;
    }
    ++counters[slot];
}

__attribute__((constructor)) static void announce_coverage() {
    __sanitizer_cov_8bit_counters_init(counters, counters + kSlots);
    __sanitizer_cov_pcs_init(&blocks[0].address, &blocks[0].address + 2 * kSlots);
}

void* __real_mmap(void* address, size_t bytes, int protection, int flags, int descriptor, off_t offset);
int __real_munmap(void* address, size_t bytes);

void* __wrap_mmap(void*, size_t bytes, int protection, int flags, int descriptor, off_t offset) {
    const size_t pages = whole_pages(bytes), guard = page_bytes();
    void* reserved =
        __real_mmap(nullptr, pages + 2 * guard, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED) return MAP_FAILED;
    char* start = static_cast<char*>(reserved) + guard;
    if (__real_mmap(start, bytes, protection, flags | MAP_FIXED, descriptor, offset) == MAP_FAILED) {
        __real_munmap(reserved, pages + 2 * guard);
        return MAP_FAILED;
    }
    __asan_poison_memory_region(start + bytes, pages - bytes);
    return start;
}

int __wrap_munmap(void* address, size_t bytes) {
    const size_t pages = whole_pages(bytes), guard = page_bytes();
    auto* start = static_cast<char*>(address);
    __asan_unpoison_memory_region(start + bytes, pages - bytes);
    return __real_munmap(start - guard, pages + 2 * guard);
}

}  // extern "C"
