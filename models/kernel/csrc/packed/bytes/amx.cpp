// x86 with AMX for bytes, and the instructions of vnni.cpp.
#define PRUNEGYM_TILES
#define LANES 16
#define VARIANT amx
#include "variant.h"
