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
  explicit Team(int parts) : parts_(parts), owner_(getpid()), openmp_(openmp.get()) {
    try {
      for (int part = 1; !openmp_ && part < parts; part++) helpers_.emplace_back([this, part] { help(part); });
    } catch (const std::system_error&) {  // then they are never all awake, and layers are run alone
    }
  }
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
    if (openmp_) return during_openmp(f);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      running_ = true;
    }
    wake_.notify_all();
    const Stop stop{running_};
    f();
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

  // The first thread to come runs f, the others help until it is done.
  template <typename F>
  void during_openmp(F f) {
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
        const Stop stop{w.team.running_};
        try {
          w.f();
        } catch (...) {  // must not pass through OpenMP
          w.failure = std::current_exception();
        }
      } else if (part < w.team.parts_) {
        unsigned seen = w.team.round_;  // no round is under way before all have come
        w.team.help_awake(part, seen, std::chrono::microseconds{0});
      }
    };
    openmp_(join, &work, parts_, 0);
    if (work.failure) std::rethrow_exception(work.failure);
  }

  void help(int part) {
    unsigned seen = 0;  // kept over sleep: a round may begin while this one is about to fall asleep, still counted as awake
    while (sleep()) help_awake(part, seen, LINGER);
  }

  // `seen`: the last round that this helper knows of. Rounds begin only when all are awake.
  void help_awake(int part, unsigned& seen, std::chrono::microseconds linger) {
    awake_.fetch_add(1, std::memory_order_release);
    stay_awake(part, seen, linger);
    awake_.fetch_sub(1, std::memory_order_release);
  }

  // Returns when there is a run, or false when the team ends. A run that began just before is not missed.
  bool sleep() {
    std::unique_lock<std::mutex> lock(mutex_);
    wake_.wait(lock, [this] { return closing_ || running_; });
    return !closing_;
  }

  void stay_awake(int part, unsigned& seen, std::chrono::microseconds linger) {
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
        end = std::min(end, now + linger);
      }
      pause(spins);
    }
  }

  const int parts_, owner_;
  const OpenMP openmp_;  // for good: of two kinds of helpers each would take the other's work
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
