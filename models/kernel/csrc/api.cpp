// The C interface, called by ctypes (which releases the GIL). Functions return 0 or a pointer on success; on failure
// they write the reason into `error` (at least 256 bytes).
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#if defined(PRUNEGYM_X86) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "plan.h"
#include "threads.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace prunegym {

namespace generic { extern const Variant variant; }
namespace avx2 { extern const Variant variant; }
namespace avx512 { extern const Variant variant; }
namespace bytes4 { extern const Variant variant; }
namespace bytes8 { extern const Variant variant; }
namespace avxvnni { extern const Variant variant; }
namespace vnni { extern const Variant variant; }
namespace amx { extern const Variant variant; }
namespace pairs4 { extern const Variant variant; }
namespace pairs8 { extern const Variant variant; }
namespace avx512_bf16 { extern const Variant variant; }
namespace amx_bf16 { extern const Variant variant; }

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

#if defined(PRUNEGYM_X86) && defined(__linux__)
// Whether the processor has tiles (CPUID 7, EDX bit 24), and their products of bytes (bit 25) or bfloat16 (bit 22).
[[maybe_unused]] static bool has_tiles(int kind) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 1) && (d >> kind & 1);
}
// Whether it has AVX-VNNI (CPUID 7.1, EAX bit 4).
[[maybe_unused]] static bool has_avxvnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

// AMX needs the kernel's permission, which is for the whole process; without it the first tile is a crash.
[[maybe_unused]] static bool tiles_allowed() {
  constexpr long request = 0x1023, tiles = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request, tiles) == 0;
}
#else
[[maybe_unused]] static bool has_tiles(int) { return false; }
[[maybe_unused]] static bool has_avxvnni() { return false; }
[[maybe_unused]] static bool tiles_allowed() { return false; }
#endif

std::vector<const Variant*> runnable_on_bytes() {
  std::vector<const Variant*> variants;
#ifdef PRUNEGYM_X86
  __builtin_cpu_init();
#ifdef PRUNEGYM_EMULATE_AVX512
  if (__builtin_cpu_supports("avx2")) variants = {&amx::variant, &vnni::variant};
#else
  [[maybe_unused]] const bool wide = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                                     __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi2");
#ifndef PRUNEGYM_WITHOUT_AMX
  static const bool tiles = wide && has_tiles(25) && tiles_allowed();
  if (tiles) variants.push_back(&amx::variant);
#endif
#ifndef PRUNEGYM_WITHOUT_VNNI
  if (wide) variants.push_back(&vnni::variant);
#endif
#endif
#ifndef PRUNEGYM_WITHOUT_AVXVNNI
  if (__builtin_cpu_supports("avx2") && has_avxvnni()) variants.push_back(&avxvnni::variant);
#endif
  if (__builtin_cpu_supports("avx2")) variants.push_back(&bytes8::variant);
#endif
  variants.push_back(&bytes4::variant);
  return variants;
}

std::vector<const Variant*> runnable_on_pairs() {
  std::vector<const Variant*> variants;
#ifdef PRUNEGYM_X86
  __builtin_cpu_init();
#ifdef PRUNEGYM_EMULATE_AVX512
  if (__builtin_cpu_supports("avx2")) variants = {&amx_bf16::variant, &avx512_bf16::variant};
#elif !defined(PRUNEGYM_WITHOUT_AVX512_BF16)
  const bool wide = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi2");
#ifndef PRUNEGYM_WITHOUT_AMX_BF16
  static const bool tiles = wide && has_tiles(22) && tiles_allowed();
  if (tiles) variants.push_back(&amx_bf16::variant);
#endif
  if (wide) variants.push_back(&avx512_bf16::variant);
#endif
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) variants.push_back(&pairs8::variant);
#endif
  variants.push_back(&pairs4::variant);
  return variants;
}

}  // namespace prunegym

using namespace prunegym;

static std::string names_of(const std::vector<const Variant*>& variants) {
  std::string all;
  for (const Variant* v : variants) all += (all.empty() ? "" : ",") + std::string(v->name);
  return all;
}

// Names of the runnable variants, best first, separated by commas.
EXPORT const char* prunegym_variants() {
  static const std::string names = names_of(runnable_variants());
  return names.c_str();
}
EXPORT const char* prunegym_variants_on_bytes() {
  static const std::string names = names_of(runnable_on_bytes());
  return names.c_str();
}

EXPORT const char* prunegym_variants_on_pairs() {
  static const std::string names = names_of(runnable_on_pairs());
  return names.c_str();
}

// Increase this when the arguments of a function below change: Python then sees whether library and package fit.
EXPORT int prunegym_interface() { return 10; }
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

static const Variant& named(const char* name, const std::vector<const Variant*>& variants) {
  for (const Variant* v : variants)
    if (std::strcmp(v->name, name) == 0) return *v;
  throw std::invalid_argument("no variant " + std::string(name));
}

// The names of variants for floats, bytes and bfloat16.
EXPORT void* prunegym_plan_new(const char* floats, const char* bytes, const char* pairs, const NetworkRecord* network, char* error) {
  Plan* plan = nullptr;
  failed(error, [&] {
    const Variants variants{named(floats, runnable_variants()), named(bytes, runnable_on_bytes()), named(pairs, runnable_on_pairs())};
    plan = new Plan(variants, *network);
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
