// Threads for kernels: tasks 0 ... n-1 of one phase, each run once; a phase ends when all of its tasks have.
//
// The caller takes tasks too, so a phase never waits for a thread that the system has not woken yet. Where another
// caller has the pool, or a task asks for a phase itself, the caller runs all tasks alone: any number of threads may
// call kernels at once.
#pragma once

#define ES_KERNEL extern "C" __attribute__((visibility("default"))) int

extern "C" {
// Runs body(context, task) for every task from 0 to tasks - 1, and returns after the last one.
void es_parallel_for(int tasks, void (*body)(void*, int), void* context);
// Returns how many threads run tasks, the caller's included.
int es_count_threads();
// Sets how many threads run tasks, the caller's included: 1 to 64. Returns 0, or -1 where the system gives no thread.
__attribute__((visibility("default"))) int es_set_threads(int threads);
}

namespace es {

// Cycles of one thread from which a phase is shared. To call threads, and to pass on what lies in another core's cache,
// takes about as long as half of that: shorter phases end sooner with the caller alone.
#ifdef ES_SHARE_ALL  // tests do
constexpr long LEAST_CYCLES = 0;
#else
constexpr long LEAST_CYCLES = 8192;
#endif

// Where part number `part` of `parts` nearly equal ones of `count` begins. So tasks are cut: each thread has half of them
// then, or as near to it as whole units come.
constexpr int part_begin(int part, int parts, int count) { return int(long(part) * count / parts); }

// es_parallel_for of anything that can be called with a task's number. `cycles` is about what one thread takes for all.
template <class Body>
inline void parallel(int tasks, const Body& body, long cycles = LEAST_CYCLES) {
    if (cycles < LEAST_CYCLES) {
        for (int task = 0; task < tasks; ++task) body(task);
        return;
    }
    es_parallel_for(
        tasks, [](void* context, int task) { (*static_cast<const Body*>(context))(task); },
        const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace es
