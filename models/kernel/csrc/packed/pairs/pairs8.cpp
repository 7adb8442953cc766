// x86 with AVX2: products of floats.
#define LANES 8
#define VARIANT pairs8
#include "variant.h"
