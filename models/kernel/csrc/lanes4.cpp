// Any processor: 128-bit vectors (SSE2, NEON), or what the compiler makes of them.
#define LANES 4
#define VARIANT lanes4
#define VARIANT_NAME "generic"
#define VARIANT_TABLE variant_generic
#include "variant.h"
