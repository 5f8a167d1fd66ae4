// The threads of one parallel region, which take the tasks of one phase after the other from a common counter.
//
//     region ─► phase: take tasks until none is left ─► wait for all ─► next phase …
//
// A step of the engine is hundreds of short phases. Waking threads for each would cost more than the phases do, so
// they stay in one region and wait for each other by looking, for a moment, before they sleep. Tasks are taken and
// not dealt out: a thread that loses its processor to another program holds up one task, not half of a phase.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>

namespace rlserve {

class Team {
public:
    // Threads of the region; set by one of them before any phase.
    void set_size(int size) { size_ = size; }

    // Calls body(task) for each task once, `grain` tasks at a time, and returns when all are done. To be called by
    // all threads of the region, with the same arguments.
    template <typename Body>
    void share(int num_tasks, int grain, Body body) {
        if (size_ == 1) {
            for (int task = 0; task < num_tasks; ++task) body(task);
            return;
        }
        for (int first; (first = next_.fetch_add(grain, std::memory_order_relaxed)) < num_tasks;)
            for (int task = first; task < std::min(num_tasks, first + grain); ++task) body(task);
        wait();
    }

    int size() const { return size_; }

private:
    static constexpr int LOOKS = 2000;  // some 20 to 50 microseconds

    void wait() {
        const unsigned phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
            arrived_.store(0, std::memory_order_relaxed);
            next_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            phase_.notify_all();
            return;
        }
        for (int look = 0; look < LOOKS; ++look) {
            if (phase_.load(std::memory_order_acquire) != phase) return;
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
        phase_.wait(phase, std::memory_order_acquire);
    }

    int size_ = 1;
    alignas(64) std::atomic<int> next_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> phase_{0};
};

// Runs body(team) on up to num_threads threads.
template <typename Body>
void run_team(int num_threads, Body body) {
    Team team;
    if (num_threads <= 1) {
        body(team);
        return;
    }
#pragma omp parallel num_threads(num_threads)
    {
#pragma omp single
        team.set_size(omp_get_num_threads());  // with a barrier behind it
        body(team);
    }
}

}  // namespace rlserve
