// Any processor: products of floats.
#define LANES 4
#define VARIANT pairs4
#include "variant.h"
