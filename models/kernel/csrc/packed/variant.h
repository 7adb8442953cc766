// The table of layer functions on packs, for one kind of numbers and one set of instructions. `plan_layer` and `together`
// are those of the kind (bytes/variant.h, pairs/variant.h).
#pragma once
#include "layers.h"

namespace prunegym {
namespace VARIANT {

extern const Variant variant;
const Variant variant = {
    TEXT(VARIANT), LANES, plan_layer, prepare_conv, conv, together,
    {nullptr, nullptr, max_pool, nullptr, subsample, average, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr,
     convert}, decide_on_packs, look_at_packs,
};

}  // namespace VARIANT
}  // namespace prunegym
