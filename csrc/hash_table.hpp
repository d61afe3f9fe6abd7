// Hashes of byte strings and an open-addressing table with 64-bit hashes as keys: equal hashes count as equal things.
// Two of a million different ones share a hash with a probability below 1e-6.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

namespace mindllm {

// Spreads a number's bits over all of another; a bijection (the finaliser of MurmurHash3).
inline uint64_t mix(uint64_t x) {
    x ^= x >> 33;
    x *= 0xFF51AFD7ED558CCDu;
    x ^= x >> 33;
    x *= 0xC4CEB9FE1A85EC53u;
    return x ^ x >> 33;
}

inline uint64_t hash_bytes(std::string_view bytes) {
    uint64_t hash = bytes.size() * 0x9E3779B97F4A7C15u;
    size_t at = 0;
    for (; at + 8 <= bytes.size(); at += 8) {
        uint64_t word;
        std::memcpy(&word, bytes.data() + at, 8);
        hash = mix(hash ^ word) * 0x9E3779B97F4A7C15u;
    }
    uint64_t rest = 0;
    std::memcpy(&rest, bytes.data() + at, bytes.size() - at);
    return mix(hash ^ rest);
}

// Value by hash. Grows by doubling; at most half full. Hashes should be mixed already.
template <typename Value>
class HashTable {
  public:
    // Room for so many without growth.
    explicit HashTable(size_t expected = 0) {
        size_t slots = 16;
        while (slots < 2 * expected) slots *= 2;
        slots_.resize(slots);
    }

    // The value of a hash, made with Value() if it is not there, and whether it was made.
    std::pair<Value&, bool> find_or_add(uint64_t hash) {
        if (2 * (count_ + 1) > slots_.size()) grow();
        Slot& slot = place(hash);
        if (slot.hash != 0) return {slot.value, false};
        slot.hash = key(hash);
        ++count_;
        return {slot.value, true};
    }

  private:
    struct Slot {
        uint64_t hash = 0;  // 0: empty
        Value value = Value();
    };

    static uint64_t key(uint64_t hash) { return hash ? hash : 1; }

    Slot& place(uint64_t hash) {
        const size_t mask = slots_.size() - 1;
        size_t at = key(hash) & mask;
        while (slots_[at].hash != 0 && slots_[at].hash != key(hash)) at = (at + 1) & mask;
        return slots_[at];
    }

    void grow() {
        std::vector<Slot> old(2 * slots_.size());
        old.swap(slots_);
        for (const Slot& slot : old) {
            if (slot.hash) place(slot.hash) = slot;
        }
    }

    std::vector<Slot> slots_;
    size_t count_ = 0;
};

}  // namespace mindllm
