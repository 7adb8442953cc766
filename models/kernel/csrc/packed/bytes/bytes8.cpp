// x86 with AVX2.
#define LANES 8
#define VARIANT bytes8
#include "variant.h"
