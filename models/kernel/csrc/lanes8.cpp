// x86 with AVX2 and FMA; compiled with -mavx2 -mfma.
#define LANES 8
#define VARIANT avx2
#include "variant.h"
