// The table of layer functions on bytes, for one set of instructions; included once by each file of them.
#pragma once
#include "layers.h"
#include "together.h"

namespace prunegym {
namespace VARIANT {

extern const Variant variant;
const Variant variant = {
    TEXT(VARIANT), LANES, plan_conv, prepare_conv, conv, together,
    {nullptr, nullptr, max_pool, nullptr, subsample, average, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr,
     convert}, decide_on_bytes, look_at_bytes,
};

}  // namespace VARIANT
}  // namespace prunegym
