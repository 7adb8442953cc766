// x86 with AVX-512: products of bytes (VNNI) and their compression (VBMI2).
#define LANES 16
#define VARIANT vnni
#include "variant.h"
