// Any processor: 128-bit vectors (SSE2, NEON), or what the compiler makes of them.
#define LANES 4
#define VARIANT generic
#include "variant.h"
