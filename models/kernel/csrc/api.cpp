// The C interface, called by ctypes (which releases the GIL). Functions return 0 or a pointer on success; on failure
// they write why into `error` (at least 256 bytes).
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

extern const Variant variant_generic;
#ifdef PRUNEGYM_X86
extern const Variant variant_avx2, variant_avx512;
#endif

std::vector<const Variant*> runnable_variants() {
  std::vector<const Variant*> variants;
#ifdef PRUNEGYM_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("fma"))
    variants.push_back(&variant_avx512);
#ifdef PRUNEGYM_EMULATE_AVX512  // lanes16.cpp compiled for AVX2: slow, but its logic can be tested
  else if (__builtin_cpu_supports("avx2")) variants.push_back(&variant_avx512);
#endif
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) variants.push_back(&variant_avx2);
#endif
  variants.push_back(&variant_generic);
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

// Raised when a function below gets other arguments, so that Python can tell whether library and package belong together.
EXPORT int prunegym_interface() { return 5; }
// Images are shared among OpenMP's threads from now on, null: among threads of our own; plans that have shared an image
// already go on as they did.
EXPORT void prunegym_use_openmp(void* entry) {
  openmp.call = reinterpret_cast<OpenMP>(entry);
  openmp.owner = getpid();
}
EXPORT int prunegym_record_size() { return sizeof(LayerRecord); }

// What f returns, or null and why.
template <typename F>
static auto guarded(char* error, F f) -> decltype(f()) {
  try {
    return f();
  } catch (const std::bad_alloc&) {
    std::snprintf(error, 256, "not enough memory");
  } catch (const std::exception& e) {
    std::snprintf(error, 256, "%s", e.what());
  }
  return nullptr;
}

// strides: floats from an image, a channel, a row and a column to the next.
static Images images_at(const float* data, const int64_t* strides) {
  return Images{data, static_cast<long>(strides[0]), static_cast<long>(strides[1]), static_cast<long>(strides[2]),
                static_cast<long>(strides[3])};
}

EXPORT void* prunegym_plan_new(const char* variant, int buffers, const BufferRecord* buffer_records, int values,
                               const ValueRecord* value_records, int gates, const int32_t* widths, int layers,
                               const LayerRecord* layer_records, char* error) {
  return guarded(error, [&]() -> Plan* {
    for (const Variant* v : runnable_variants())
      if (std::strcmp(v->name, variant) == 0)
        return new Plan(*v, buffers, buffer_records, values, value_records, gates, widths, layers, layer_records);
    throw std::invalid_argument("no variant " + std::string(variant));
  });
}

// A pass keeps a pointer to its plan.
EXPORT void* prunegym_pass_new(void* plan, int batch, int threads, char* error) {
  return guarded(error, [&] { return new Pass(*static_cast<Plan*>(plan), batch, threads); });
}

EXPORT void prunegym_pass_free(void* pass) { delete static_cast<Pass*>(pass); }

EXPORT int prunegym_pass_begin(void* pass, const float* images, const int64_t* strides, float* features, int threads,
                               char* error) {
  return guarded(error, [&] {
    static_cast<Pass*>(pass)->begin(images_at(images, strides), features, threads);
    return pass;
  }) == nullptr;
}

EXPORT int prunegym_pass_advance(void* pass, uint8_t* masks, float* features, float* outputs, int threads, char* error) {
  return guarded(error, [&] {
    static_cast<Pass*>(pass)->advance(masks, features, outputs, threads);
    return pass;
  }) == nullptr;
}

EXPORT void prunegym_plan_free(void* plan) { delete static_cast<Plan*>(plan); }

EXPORT int prunegym_plan_run(void* plan, int batch, const float* images, const int64_t* strides, uint8_t* masks,
                             float* outputs, int threads, double* layer_seconds, char* error) {
  return guarded(error, [&] {
    static_cast<Plan*>(plan)->run(batch, images_at(images, strides), masks, outputs, threads, layer_seconds);
    return plan;
  }) == nullptr;
}
