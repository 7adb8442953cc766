// Threads that share the images of a batch, or one image (team.h): OpenMP's where these are at hand, else new ones.
#pragma once
#include <unistd.h>

#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace prunegym {

// OpenMP's own entry point, of the library that torch has loaded. Its threads spin for milliseconds after each of torch's
// operations; work for them is begun at once, while threads of our own would have to share the cores with the spinning.
// Runs work(data) on so many threads, or on fewer.
typedef void (*OpenMP)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

struct OpenMPEntry {
  std::atomic<OpenMP> call{nullptr};
  std::atomic<int> owner{0};  // OpenMP's threads do not survive fork(), and it waits for them for ever

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
    } catch (const std::system_error&) {  // no more to be had: those that are there do all
    }
    work();
    for (std::thread& helper : helpers) helper.join();
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace prunegym
