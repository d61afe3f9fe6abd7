// A SIGBUS handler that jumps back into the copy of its own thread. Between the two there is nothing but a memcpy: no
// object to destroy, no lock held.
#include "bus_guard.hpp"

#include <atomic>
#include <csetjmp>
#include <csignal>
#include <cstring>
#include <mutex>

namespace mindllm {

namespace {

// Where the copy of this thread goes on after a fault, null outside of copies. Static storage: a handler may not allocate.
__attribute__((tls_model("initial-exec"))) thread_local sigjmp_buf* resume = nullptr;
struct sigaction previous;
volatile sig_atomic_t passed_on = 0;

// The same instruction faults again after the return, and meets the handler set here: the one that was there before, and
// should that come back to this one, the system's.
void handle(int, siginfo_t*, void*) {
    if (resume != nullptr) siglongjmp(*resume, 1);
    struct sigaction next = previous;
    if (passed_on) {
        next = {};
        next.sa_handler = SIG_DFL;
    }
    passed_on = 1;
    ::sigaction(SIGBUS, &next, nullptr);
}

// Who takes the signal first and hands it on to this handler may have blocked it meanwhile, and the jump has left it so;
// the next fault would end the process. (Saving the mask before each copy would cost a system call.)
void unblock() {
    sigset_t bus;
    sigemptyset(&bus);
    sigaddset(&bus, SIGBUS);
    ::pthread_sigmask(SIG_UNBLOCK, &bus, nullptr);
}

}  // namespace

void install_bus_guard() {
    static std::mutex mutex;
    const std::lock_guard<std::mutex> lock(mutex);
    struct sigaction current;
    ::sigaction(SIGBUS, nullptr, &current);
    if ((current.sa_flags & SA_SIGINFO) != 0 && current.sa_sigaction == handle) return;
    previous = current;
    struct sigaction ours{};
    ours.sa_sigaction = handle;
    // Not deferred, as the jump leaves the handler without a return; on the alternative stack where a thread has one.
    ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigemptyset(&ours.sa_mask);
    ::sigaction(SIGBUS, &ours, nullptr);
}

bool copy_guarded(void* out, const void* from, size_t bytes) {
    sigjmp_buf here;
    if (sigsetjmp(here, 0) != 0) {
        resume = nullptr;
        unblock();
        return false;
    }
    resume = &here;
    std::atomic_signal_fence(std::memory_order_seq_cst);  // the copy stays between the two
    std::memcpy(out, from, bytes);
    std::atomic_signal_fence(std::memory_order_seq_cst);
    resume = nullptr;
    return true;
}

}  // namespace mindllm
