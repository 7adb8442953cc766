// Threads that share the convolutions of one image, layer by layer. Between layers they wait only microseconds, so they
// spin while a network runs. Waking them takes as long as several layers of a small network. Until they are awake, the
// first thread runs layers alone.
#pragma once
#include <atomic>
#include <functional>
#include <thread>

#include "threads.h"

namespace prunegym {

class Team {
 public:
  explicit Team(int parts) : parts_(parts) {}

  int parts() const { return parts_; }

  // Runs f, which may call run(), on the first thread that arrives. The others help until it is done.
  template <typename F>
  void during(F f) {
    running_ = true;
    on_threads(parts_, [&](int part) {
      if (part > 0) return help(part);
      const Stop stop{running_};
      f();
    });
  }
  // Whether all helpers are ready to begin.
  bool awake() const { return awake_.load(std::memory_order_acquire) == parts_ - 1; }

  // Calls work(part) for every part, each on its own thread, and returns when all are done.
  void run(const std::function<void(int)>& work) {
    work_ = &work;
    pending_.store(parts_ - 1, std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
    work(0);
    for (int spins = 0; pending_.load(std::memory_order_acquire) > 0; spins++) pause(spins);
  }

 private:
  // Releases the helpers, even after an exception: otherwise they would never stop spinning.
  struct Stop {
    std::atomic<bool>& running;
    ~Stop() { running = false; }
  };

  // On a busy machine, the other thread may not be running at all, so yield after a while.
  static void pause(int spins) {
    if (spins > 1000) std::this_thread::yield();
#if defined(__x86_64__) || defined(__i386__)
    else __builtin_ia32_pause();
#endif
  }

  // Rounds begin only when all helpers are awake, so no round is running when a helper arrives.
  void help(int part) {
    unsigned seen = round_;
    awake_.fetch_add(1, std::memory_order_release);
    for (int spins = 0; running_; pause(spins++)) {
      if (round_.load(std::memory_order_acquire) == seen) continue;
      seen++;
      (*work_)(part);
      pending_.fetch_sub(1, std::memory_order_release);
      spins = 0;
    }
    awake_.fetch_sub(1, std::memory_order_release);
  }

  const int parts_;
  std::atomic<bool> running_{false};
  std::atomic<unsigned> round_{0};
  std::atomic<int> pending_{0}, awake_{0};
  const std::function<void(int)>* work_ = nullptr;
};

}  // namespace prunegym
