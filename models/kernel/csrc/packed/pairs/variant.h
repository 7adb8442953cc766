// Layer functions on bfloat16; included once by each file of a set of instructions.
#pragma once
#include "pairs.h"

#include "../conv.h"

namespace prunegym {
namespace VARIANT {

constexpr void (*plan_layer)(Conv&, bool) = plan_conv;
constexpr bool (*together)(const Conv&, const ConvCall*, int, float*) = nullptr;

}  // namespace VARIANT
}  // namespace prunegym

#include "../variant.h"
