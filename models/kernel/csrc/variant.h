// The table of layer functions of one vector width; included once by each lanes*.cpp.
#pragma once
#include "conv.h"
#include "layers.h"

namespace prunegym {
namespace VARIANT {

extern const Variant variant;
const Variant variant = {
    TEXT(VARIANT), LANES, plan_conv, prepare_conv, conv, nullptr,
    {nullptr, nullptr, max_pool, add, subsample, average, linear, depthwise, avg_pool, place, scale, expand,
     compensate, nullptr}, decide, look,
};

}  // namespace VARIANT
}  // namespace prunegym
