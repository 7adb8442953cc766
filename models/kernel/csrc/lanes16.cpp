// x86 with AVX-512F; compiled with -mavx512f -mavx512vl -mavx512dq -mfma.
#define LANES 16
#define VARIANT lanes16
#define VARIANT_NAME "avx512"
#define VARIANT_TABLE variant_avx512
#include "variant.h"
