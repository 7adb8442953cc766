// x86 with AVX2 and FMA; compiled with -mavx2 -mfma.
#define LANES 8
#define VARIANT lanes8
#define VARIANT_NAME "avx2"
#define VARIANT_TABLE variant_avx2
#include "variant.h"
