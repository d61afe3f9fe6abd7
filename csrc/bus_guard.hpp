// Copies from a mapped file that may be cut short, or lost, while it is mapped. A touch of a page that is not there any
// more raises SIGBUS, which ends a process; here it ends the copy.
#pragma once

#include <cstddef>

namespace mindllm {

// Takes SIGBUS for this process, if another handler has it. What is not of a `copy_guarded` goes to that handler.
void install_bus_guard();

// Copies `bytes` bytes. False, with `out` written in part, if a page of `from` cannot be read.
bool copy_guarded(void* out, const void* from, size_t bytes);

}  // namespace mindllm
