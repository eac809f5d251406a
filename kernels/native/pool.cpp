// A pool of threads that share the tasks of one phase at a time.
//
//     ticket = (generation, next task)       one atomic number; generations of open phases are even
//
// A thread takes task t by exchanging (g, t) for (g, t + 1), after it has read the phase's body. The caller makes the
// generation odd before it writes the next body, so an exchange that succeeds proves that the body read is the phase's.
// A thread that comes late finds no task, and nobody has waited for it. Idle threads look for a new generation for a
// while, SPINS looks, and then sleep until they are woken.
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

namespace {

constexpr int MOST_THREADS = 64;
constexpr int SPINS = 4000;  // some 50 us: longer than from one kernel to the next, shorter than a frame
constexpr size_t STACK = 4 << 20;  // kernels keep tiles on the stack, up to 512 KiB
constexpr uint64_t CLOSED = 0x7fffffff;

using Body = void (*)(void*, int);

uint64_t ticket = CLOSED;  // generation 0, with no task left
Body phase_body = nullptr;
void* phase_context = nullptr;
int phase_tasks = 0;
int finished = 0;  // tasks of the phase that have ended
int is_taken = 0;  // a caller has the pool

pthread_mutex_t sleep_mutex = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
int sleepers = 0;

pthread_mutex_t resize_mutex = PTHREAD_MUTEX_INITIALIZER;
pthread_t threads[MOST_THREADS];
int wanted = 0;   // threads beside the caller
int running = 0;  // of them, those that were started
pid_t owner = 0;  // the process that started them: a fork has none of them

template <class T>
T read(const T& from) {
    return __atomic_load_n(&from, __ATOMIC_SEQ_CST);
}

template <class T>
void write(T& to, T value) {
    __atomic_store_n(&to, value, __ATOMIC_SEQ_CST);
}

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

uint64_t generation_of(uint64_t value) { return value >> 32; }

// Runs tasks of the open phase until none is left.
void take_tasks() {
    for (;;) {
        uint64_t seen = read(ticket);
        const Body body = read(phase_body);
        void* const context = read(phase_context);
        const int task = static_cast<int>(seen & CLOSED);
        if (generation_of(seen) % 2 || task >= read(phase_tasks)) return;
        if (!__atomic_compare_exchange_n(&ticket, &seen, seen + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) continue;
        body(context, task);
        __atomic_add_fetch(&finished, 1, __ATOMIC_SEQ_CST);
    }
}

// Returns when the generation is another one than `known`, or thread `index` is to end.
void wait_for_phase(uint64_t known, int index) {
    for (int i = 0; i < SPINS; ++i) {
        if (generation_of(read(ticket)) != known || index >= read(wanted)) return;
        relax();
    }
    pthread_mutex_lock(&sleep_mutex);
    __atomic_add_fetch(&sleepers, 1, __ATOMIC_SEQ_CST);
    while (generation_of(read(ticket)) == known && index < read(wanted)) pthread_cond_wait(&wake, &sleep_mutex);
    __atomic_sub_fetch(&sleepers, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&sleep_mutex);
}

void wake_sleepers() {
    if (read(sleepers) == 0) return;
    pthread_mutex_lock(&sleep_mutex);
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&sleep_mutex);
}

void* work(void* given) {
    const int index = static_cast<int>(reinterpret_cast<intptr_t>(given));
    while (index < read(wanted)) {
        const uint64_t known = generation_of(read(ticket));
        take_tasks();
        wait_for_phase(known, index);
    }
    return nullptr;
}

bool start_thread(int index) {
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes)) return false;
    pthread_attr_setstacksize(&attributes, STACK);
    void* const given = reinterpret_cast<void*>(static_cast<intptr_t>(index));
    const bool is_started = pthread_create(&threads[index], &attributes, work, given) == 0;
    pthread_attr_destroy(&attributes);
    return is_started;
}

// Starts or ends threads until there are `count` beside the caller.
int resize(int count) {
    pthread_mutex_lock(&resize_mutex);
    if (owner != getpid()) running = 0;
    owner = getpid();
    write(wanted, count);
    pthread_mutex_lock(&sleep_mutex);
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&sleep_mutex);
    while (running > count) pthread_join(threads[--running], nullptr);
    while (running < count && start_thread(running)) ++running;
    if (running < count) write(wanted, running);
    const int result = running == count ? 0 : -1;
    pthread_mutex_unlock(&resize_mutex);
    return result;
}

__attribute__((destructor)) void end_threads() { resize(0); }

}  // namespace

extern "C" void es_parallel_for(int tasks, void (*body)(void*, int), void* context) {
    int untaken = 0;
    const bool is_shared = tasks > 1 && read(wanted) > 0;
    if (!is_shared || !__atomic_compare_exchange_n(&is_taken, &untaken, 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
        for (int task = 0; task < tasks; ++task) body(context, task);
        return;
    }
    const uint64_t next = (generation_of(read(ticket)) + 2) & ~uint64_t(1);
    write(ticket, (next - 1) << 32 | CLOSED);
    write(phase_body, body);
    write(phase_context, context);
    write(phase_tasks, tasks);
    write(finished, 0);
    write(ticket, next << 32);
    wake_sleepers();
    take_tasks();
    for (int i = 0; read(finished) < tasks; ++i)
        if (i < SPINS)
            relax();
        else
            sched_yield();  // the system has taken the core from another thread of the pool
    write(is_taken, 0);
}

extern "C" int es_set_threads(int count) {
    return count < 1 || count > MOST_THREADS ? -1 : resize(count - 1);
}
