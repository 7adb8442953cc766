// x86 with AVX2 and its own form of products of bytes (AVX-VNNI), without AVX-512.
#define LANES 8
#define VARIANT avxvnni
#include "variant.h"
