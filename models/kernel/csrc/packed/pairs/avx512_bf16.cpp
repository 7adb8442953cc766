// x86 with AVX-512: products of bfloat16 (BF16) and the compression of their halves (VBMI2).
#define LANES 16
#define VARIANT avx512_bf16
#include "variant.h"
