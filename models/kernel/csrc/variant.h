// The table of layer functions of one vector width; included once by each lanes*.cpp.
#pragma once
#include "conv.h"
#include "layers.h"

namespace prunegym {

extern const Variant VARIANT_TABLE;
const Variant VARIANT_TABLE = {
    VARIANT_NAME,           LANES,         VARIANT::plan_conv, VARIANT::planes_size, VARIANT::scratch_size,
    VARIANT::prepare_conv,  VARIANT::conv, VARIANT::max_pool,  VARIANT::add,         VARIANT::subsample,
    VARIANT::average,       VARIANT::linear, VARIANT::decide,    VARIANT::look,
};

}  // namespace prunegym
