// A pool of threads that share the tasks of one phase at a time.
//
//     share i of T    tasks i n / T to (i + 1) n / T, the same in every phase and every kernel
//     ticket of i     (generation, next task): one atomic number; generations of open phases are even
//
// A thread takes the tasks of its own share first, so that a row of a map is made by the thread that will read it in
// the next phase, from its own cache; then it helps with the others. It takes task t by exchanging (g, t) for (g, t +
// 1) in the share's ticket, after it has read the rest of the share. The caller makes a share's generation odd before it
// writes the next one, so an exchange that succeeds proves that what was read belongs to the phase. A thread that comes
// late finds no task, and nobody has waited for it. A line of cache takes some 100 ns from one core to another, so that
// all a thread needs of a phase is in one. Idle threads look for a new generation for AWAKE ns, and then sleep until they
// are woken, which takes some 30 us.
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

namespace {

constexpr int MOST_THREADS = 64;
constexpr int LINE = 128;        // bytes that two cores should not share: a line of cache, and the one fetched with it
constexpr long AWAKE = 400'000;  // ns: longer than from one call to the next, shorter than a frame
constexpr int LOOKS = 64;        // for a generation, between two looks at the clock
constexpr int SPINS = 4000;      // looks for the last task's end
constexpr size_t STACK = 4 << 20;  // kernels keep tiles on the stack, up to 512 KiB
constexpr uint64_t CLOSED = 0x7fffffff;

using Body = void (*)(void*, int);

// One thread's part of a phase.
struct alignas(LINE) Share {
    uint64_t ticket = CLOSED;  // generation 0, with no task left
    Body body = nullptr;
    void* context = nullptr;
    int end = 0;       // behind its last task
    int shares = 0;    // of the phase
    int finished = 0;  // of its tasks, those that have ended
};

Share shares[MOST_THREADS];
alignas(LINE) int is_taken = 0;  // a caller has the pool, and with it what follows
uint64_t generation = 0;         // of the last phase
int open = 0;                    // its shares

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

// A write that others see after all earlier ones, at once or a little later.
template <class T>
void put(T& to, T value) {
    __atomic_store_n(&to, value, __ATOMIC_RELEASE);
}

long now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1'000'000'000L + time.tv_nsec;
}

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

template <class T>
bool exchange(T& in, T seen, T value) {
    return __atomic_compare_exchange_n(&in, &seen, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

uint64_t generation_of(uint64_t value) { return value >> 32; }

// Runs tasks of one share until none is left.
void take(Share& share) {
    for (int done = 0;;) {
        uint64_t seen = read(share.ticket);
        const Body body = read(share.body);
        void* const context = read(share.context);
        const int task = static_cast<int>(seen & CLOSED);
        if (generation_of(seen) % 2 || task >= read(share.end)) {
            if (done) __atomic_add_fetch(&share.finished, done, __ATOMIC_SEQ_CST);
            return;
        }
        if (!exchange(share.ticket, seen, seen + 1)) continue;
        body(context, task);
        ++done;
    }
}

// Runs tasks of the open phase until none is left, those of share `own` first.
void take_tasks(int own) {
    const int count = read(shares[own].shares);
    for (int i = 0; i < count; ++i) take(shares[(own + i) % count]);
}

int count_finished() {
    int finished = 0;
    for (int i = 0; i < open; ++i) finished += read(shares[i].finished);
    return finished;
}

void wake_sleepers() {
    if (read(sleepers) == 0) return;
    pthread_mutex_lock(&sleep_mutex);
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&sleep_mutex);
}

// Gives every thread its share of a phase, the caller's last.
void open_phase(int tasks, Body body, void* context) {
    open = read(wanted) + 1;
    generation += 2;
    for (int i = open - 1; i >= 0; --i) {
        Share& share = shares[i];
        put(share.ticket, (generation - 1) << 32 | CLOSED);
        put(share.body, body);
        put(share.context, context);
        put(share.end, static_cast<int>(long(tasks) * (i + 1) / open));
        put(share.shares, open);
        put(share.finished, 0);
        write(share.ticket, generation << 32 | static_cast<uint64_t>(long(tasks) * i / open));
    }
    wake_sleepers();
}

// Returns when the generation is another one than `known`, or thread `index` is to end.
void wait_for_phase(uint64_t known, int index) {
    const uint64_t& ticket = shares[index + 1].ticket;
    const long until = now() + AWAKE;
    for (int i = 1; i % LOOKS || now() < until; ++i) {
        if (generation_of(read(ticket)) != known || index >= read(wanted)) return;
        relax();
    }
    pthread_mutex_lock(&sleep_mutex);
    __atomic_add_fetch(&sleepers, 1, __ATOMIC_SEQ_CST);
    while (generation_of(read(ticket)) == known && index < read(wanted)) pthread_cond_wait(&wake, &sleep_mutex);
    __atomic_sub_fetch(&sleepers, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&sleep_mutex);
}

void* work(void* given) {
    const int index = static_cast<int>(reinterpret_cast<intptr_t>(given));
    while (index < read(wanted)) {
        const uint64_t known = generation_of(read(shares[index + 1].ticket));
        take_tasks(index + 1);
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
    if (tasks < 2 || read(wanted) == 0 || !exchange(is_taken, 0, 1)) {
        for (int task = 0; task < tasks; ++task) body(context, task);
        return;
    }
    open_phase(tasks, body, context);
    take_tasks(0);
    for (int i = 0; count_finished() < tasks; ++i)
        if (i < SPINS)
            relax();
        else
            sched_yield();  // the system has taken the core from another thread of the pool
    write(is_taken, 0);
}

extern "C" int es_count_threads() { return read(wanted) + 1; }

extern "C" int es_set_threads(int count) {
    return count < 1 || count > MOST_THREADS ? -1 : resize(count - 1);
}
