// Marks a function whose loops are compiled for several generations of processors; the best is chosen when it is loaded:
// by a function of the file itself, which only glibc calls, and calls before a sanitizer is ready for it.
#pragma once

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define MINDLLM_VECTORISED __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define MINDLLM_VECTORISED
#endif
