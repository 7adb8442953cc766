// Layer functions on bytes; included once by each file of a set of instructions.
#pragma once
#include "quads.h"

#include "together.h"

#include "../variant.h"
