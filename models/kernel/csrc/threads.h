// Threads that share the images of a batch, or one image (team.h): OpenMP's if they can be used, otherwise new ones.
#pragma once
#include <unistd.h>

#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace prunegym {

// The entry point of the OpenMP library that torch has loaded. It runs work(data) on the given number of threads, or on
// fewer. Its threads spin for milliseconds after each of torch's operations, so they begin at once. New threads would
// have to share the cores with the spinning ones.
typedef void (*OpenMP)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

struct OpenMPEntry {
  std::atomic<OpenMP> call{nullptr};
  std::atomic<int> owner{0};  // OpenMP's threads do not survive fork(), and after it OpenMP would wait for them endlessly

  OpenMP get() const { return owner == getpid() ? call.load() : nullptr; }
};
inline OpenMPEntry openmp;

// Runs f(0), ..., f(threads - 1) at the same time, and throws what one of them threw.
template <typename F>
static void on_threads(int threads, F f) {
  std::atomic<int> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  auto work = [&] {
    for (int thread = next++; thread < threads; thread = next++) {
      try {
        f(thread);
      } catch (...) {  // must not pass through OpenMP, nor out of a thread
        std::lock_guard<std::mutex> lock(mutex);
        failure = std::current_exception();
      }
    }
  };
  if (threads == 1) {
    work();
  } else if (const OpenMP call = openmp.get()) {
    call([](void* data) { (*static_cast<decltype(work)*>(data))(); }, &work, threads, 0);
  } else {
    std::vector<std::thread> helpers;
    try {
      for (int thread = 1; thread < threads; thread++) helpers.emplace_back(work);
    } catch (const std::system_error&) {  // the system has no more threads: those that exist do all the work
    }
    work();
    for (std::thread& helper : helpers) helper.join();
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace prunegym
