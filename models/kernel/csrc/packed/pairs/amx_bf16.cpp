// x86 with AMX for bfloat16, and the instructions of avx512_bf16.cpp.
#define PRUNEGYM_TILES
#define LANES 16
#define VARIANT amx_bf16
#include "variant.h"
