// Any processor.
#define LANES 4
#define VARIANT bytes4
#include "variant.h"
