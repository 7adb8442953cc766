// Threads that share the convolutions of one image, layer by layer. Between layers they wait for microseconds, so they
// spin while a network runs. Waking takes as long as several layers of a small network: until they are awake, layers are
// run alone.
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

  // Runs f, which may call run(), on the first thread to come; the others help until it is done.
  template <typename F>
  void during(F f) {
    running_ = true;
    on_threads(parts_, [&](int part) {
      if (part > 0) return help(part);
      const Stop stop{running_};
      f();
    });
  }
  // Whether all helpers would begin at once.
  bool awake() const { return awake_.load(std::memory_order_acquire) == parts_ - 1; }

  // Calls work(part) for every part, on as many threads, and returns when all are done.
  void run(const std::function<void(int)>& work) {
    work_ = &work;
    pending_.store(parts_ - 1, std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
    work(0);
    for (int spins = 0; pending_.load(std::memory_order_acquire) > 0; spins++) pause(spins);
  }

 private:
  // Lets the helpers go, also if something was thrown: else they would spin for ever.
  struct Stop {
    std::atomic<bool>& running;
    ~Stop() { running = false; }
  };

  // On a busy machine the thread that is waited for may not be running at all: give way after a while.
  static void pause(int spins) {
    if (spins > 1000) std::this_thread::yield();
#if defined(__x86_64__) || defined(__i386__)
    else __builtin_ia32_pause();
#endif
  }

  // Rounds begin only when all helpers are awake, so none is under way when one comes.
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
