// The C interface, called by ctypes (which releases the GIL). Functions return 0 or a pointer on success; on failure
// they write the reason into `error` (at least 256 bytes).
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "plan.h"
#include "threads.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace prunegym {

namespace generic { extern const Variant variant; }
namespace avx2 { extern const Variant variant; }
namespace avx512 { extern const Variant variant; }

std::vector<const Variant*> runnable_variants() {
  std::vector<const Variant*> variants;
#ifdef PRUNEGYM_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("fma"))
    variants.push_back(&avx512::variant);
#ifdef PRUNEGYM_EMULATE_AVX512  // lanes16.cpp compiled for AVX2: slow, but its logic can be tested
  else if (__builtin_cpu_supports("avx2")) variants.push_back(&avx512::variant);
#endif
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) variants.push_back(&avx2::variant);
#endif
  variants.push_back(&generic::variant);
  return variants;
}

}  // namespace prunegym

using namespace prunegym;

// Names of the runnable variants, best first, separated by commas.
EXPORT const char* prunegym_variants() {
  static const std::string names = [] {
    std::string all;
    for (const Variant* v : runnable_variants()) all += (all.empty() ? "" : ",") + std::string(v->name);
    return all;
  }();
  return names.c_str();
}

// Increase this when the arguments of a function below change: Python then sees whether library and package fit.
EXPORT int prunegym_interface() { return 8; }
// Later runs use OpenMP's threads, or new threads if this is null.
EXPORT void prunegym_use_openmp(void* entry) {
  openmp.call = reinterpret_cast<OpenMP>(entry);
  openmp.owner = getpid();
}
EXPORT int prunegym_record_size() { return sizeof(LayerRecord); }

// Runs f. If it throws, writes the reason and returns true.
template <typename F>
static bool failed(char* error, F f) {
  try {
    f();
    return false;
  } catch (const std::bad_alloc&) {
    std::snprintf(error, 256, "not enough memory");
  } catch (const std::exception& e) {
    std::snprintf(error, 256, "%s", e.what());
  }
  return true;
}

EXPORT void* prunegym_plan_new(const char* variant, const NetworkRecord* network, char* error) {
  Plan* plan = nullptr;
  failed(error, [&] {
    for (const Variant* v : runnable_variants())
      if (std::strcmp(v->name, variant) == 0) plan = new Plan(*v, *network);
    if (!plan) throw std::invalid_argument("no variant " + std::string(variant));
  });
  return plan;
}

EXPORT void prunegym_plan_free(Plan* plan) { delete plan; }

EXPORT int prunegym_plan_run(Plan* plan, int batch, const Images* inputs, uint8_t* masks, float* outputs, int threads,
                             double* layer_seconds, char* error) {
  return failed(error, [&] { plan->run(batch, inputs, masks, outputs, threads, layer_seconds); });
}

// A pass keeps a pointer to its plan.
EXPORT void* prunegym_pass_new(const Plan* plan, int batch, int threads, char* error) {
  Pass* pass = nullptr;
  failed(error, [&] { pass = new Pass(*plan, batch, threads); });
  return pass;
}

EXPORT void prunegym_pass_free(Pass* pass) { delete pass; }

EXPORT int prunegym_pass_begin(Pass* pass, const Images* images, float* features, int threads, char* error) {
  return failed(error, [&] { pass->begin(*images, features, threads); });
}

EXPORT int prunegym_pass_advance(Pass* pass, uint8_t* masks, float* features, float* outputs, int threads, char* error) {
  return failed(error, [&] { pass->advance(masks, features, outputs, threads); });
}
