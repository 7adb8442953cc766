// Threads that share the convolutions of one image, layer by layer. Between layers they wait for microseconds, so they
// spin while a network runs. Waking takes as long as several layers of a small network: until they are awake, layers are
// run alone. They are OpenMP's threads where these are at hand (threads.h); else the team has its own, which spin a little
// longer than a run, since often the next image comes at once, and then sleep.
#pragma once
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "threads.h"

namespace prunegym {

constexpr std::chrono::microseconds LINGER{200};  // between a run and falling asleep

class Team {
 public:
  explicit Team(int parts) : parts_(parts), owner_(getpid()) {}
  ~Team() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closing_ = true;
    }
    wake_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
  }

  int parts() const { return parts_; }
  // Threads do not survive fork(): in a child process the team is of no use, and waiting for its end would never end.
  bool alive() const { return owner_ == getpid(); }
  struct End {
    void operator()(Team* team) const {
      if (team->alive()) delete team;
    }
  };

  // Runs f, which may call run(), while the helpers come.
  template <typename F>
  void during(F f) {
    if (const OpenMP call = openmp.get()) return during_openmp(call, f);
    while (static_cast<int>(helpers_.size()) < parts_ - 1) {
      const int part = static_cast<int>(helpers_.size()) + 1;
      helpers_.emplace_back([this, part] { help(part); });
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      running_ = true;
    }
    wake_.notify_all();
    f();
    running_ = false;
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
  // On a busy machine the thread that is waited for may not be running at all: give way after a while.
  static void pause(int spins) {
    if (spins > 1000) std::this_thread::yield();
#if defined(__x86_64__) || defined(__i386__)
    else __builtin_ia32_pause();
#endif
  }

  // The first thread to come runs f, the others help until it is done.
  template <typename F>
  void during_openmp(OpenMP call, F f) {
    struct Work {
      Team& team;
      F& f;
      std::atomic<int> next{0};
      std::exception_ptr failure;
      Work(Team& team, F& f) : team(team), f(f) {}
    } work(*this, f);
    running_ = true;
    const auto join = [](void* data) {
      Work& w = *static_cast<Work*>(data);
      const int part = w.next++;
      if (part == 0) {
        try {
          w.f();
        } catch (...) {  // must not pass through OpenMP
          w.failure = std::current_exception();
        }
        w.team.running_ = false;
      } else if (part < w.team.parts_) {
        w.team.help_once(part);
      }
    };
    call(join, &work, parts_, 0);
    if (work.failure) std::rethrow_exception(work.failure);
  }

  void help_once(int part) {
    unsigned seen = round_.load(std::memory_order_acquire);
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

  void help(int part) {
    unsigned seen = round_.load(std::memory_order_acquire);  // rounds begin only when all are awake, so none is missed
    while (sleep()) {
      awake_.fetch_add(1, std::memory_order_release);
      stay_awake(part, seen);
      awake_.fetch_sub(1, std::memory_order_release);
    }
  }

  // Returns when there is a run, or false when the team ends. A run that began just before is not missed.
  bool sleep() {
    std::unique_lock<std::mutex> lock(mutex_);
    wake_.wait(lock, [this] { return closing_ || running_; });
    return !closing_;
  }

  void stay_awake(int part, unsigned& seen) {
    auto end = std::chrono::steady_clock::time_point::max();
    for (int spins = 0;; spins++) {
      if (round_.load(std::memory_order_acquire) != seen) {
        seen++;
        (*work_)(part);
        pending_.fetch_sub(1, std::memory_order_release);
        spins = 0;
      } else if (running_) {
        end = std::chrono::steady_clock::time_point::max();
      } else {
        const auto now = std::chrono::steady_clock::now();
        if (now > end) return;
        end = std::min(end, now + LINGER);
      }
      pause(spins);
    }
  }

  const int parts_, owner_;
  std::vector<std::thread> helpers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<bool> running_{false};
  bool closing_ = false;
  std::atomic<unsigned> round_{0};
  std::atomic<int> pending_{0}, awake_{0};
  const std::function<void(int)>* work_ = nullptr;
};

}  // namespace prunegym
