// x86 with AVX-512F; compiled with -mavx512f -mavx512vl -mavx512dq -mfma.
#define LANES 16
#define VARIANT avx512
#include "variant.h"
