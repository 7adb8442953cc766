// The constants of a plan: weights and biases, copied in the order in which the layer functions read them.
#include "plan.h"

#include <cstring>
#include <limits>

namespace prunegym {

const float* Plan::keep(const float* data, size_t count) {
  constants_.emplace_back(count);
  if (count) std::memcpy(constants_.back().data(), data, count * sizeof(float));
  return constants_.back().data();
}

// (rows, columns), with zeros after each row up to whole lines.
const float* Plan::keep_padded(const float* data, int rows, int columns) {
  const size_t padded = round_up(columns, LINE);
  constants_.emplace_back(rows * padded);
  float* to = constants_.back().data();
  for (int row = 0; row < rows; row++, data += columns) std::memcpy(to + row * padded, data, columns * sizeof(float));
  return to;
}

// (rows, columns) -> (columns, rows), with zeros after each row up to whole lines.
const float* Plan::keep_transposed(const float* data, int rows, int columns) {
  const size_t padded = round_up(rows, LINE);
  constants_.emplace_back(columns * padded);
  float* to = constants_.back().data();
  for (int row = 0; row < rows; row++)
    for (int column = 0; column < columns; column++) to[column * padded + row] = *data++;
  return to;
}

// 3x3 filters as Winograd's algorithm multiplies them, G g G^T: (out, in, 3, 3) -> (16, out, in).
const float* Plan::keep_transformed(const float* weight, int outputs, int inputs) {
  const auto row = [](const float* w, int step, float* to) {
    const float even = w[0] + w[2 * step];
    to[0] = w[0], to[1] = (even + w[step]) / 2, to[2] = (even - w[step]) / 2, to[3] = w[2 * step];
  };
  constants_.emplace_back(static_cast<size_t>(outputs) * 16 * inputs);
  float* to = constants_.back().data();
  for (int o = 0; o < outputs; o++, to += inputs) {
    for (int i = 0; i < inputs; i++, weight += 9) {
      float columns[3][4], all[4];  // columns[x] = G g, for each column of the filter
      for (int x = 0; x < 3; x++) row(weight + x, 3, columns[x]);
      for (int y = 0; y < 4; y++) {
        row(&columns[0][y], 4, all);
        for (int x = 0; x < 4; x++) to[(4L * y + x) * outputs * inputs + i] = all[x];
      }
    }
  }
  return constants_.back().data();
}

// Rounded to the nearest number of bfloat16, ties to even.
static uint16_t upper_half(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// (out, in, kernel, kernel) -> (out, kernel, kernel, in), as bytes or bfloat16.
void Plan::place_packed_weights(Layer& layer) {
  const LayerRecord& r = layer.record;
  const ValueRecord &in = values_[r.input], &out = values_[r.output];
  const int taps = layer.conv.tap_count();
  const bool pairs = in.zero == PAIRS;
  Packed& p = layer.conv.packed;
  p.tap_bytes = round_up(in.channels * (pairs ? 2 : 1), 16);
  const size_t bytes = static_cast<size_t>(out.channels) * taps * p.tap_bytes;
  constants_.emplace_back(bytes / sizeof(float));
  int8_t* to = reinterpret_cast<int8_t*>(constants_.back().data());
  p.weight = to;
  for (long row = 0; row < static_cast<long>(out.channels) * taps; row++, to += p.tap_bytes)
    for (int i = 0; i < in.channels; i++) {
      const float weight = r.weight[(row / taps * in.channels + i) * taps + row % taps];
      if (pairs) reinterpret_cast<uint16_t*>(to)[i] = upper_half(weight);
      else to[i] = static_cast<int8_t>(weight);
    }
  if (p.together_size) place_tiles(p, out.channels, taps);
}

// What makes numbers of the output of the sums.
void Plan::place_ends(Layer& layer) {
  const LayerRecord& r = layer.record;
  const ValueRecord& out = values_[r.output];
  Packed& p = layer.conv.packed;
  if (out.zero == PAIRS) {
    const float infinity = std::numeric_limits<float>::infinity();
    p.low = r.activation == RELU || r.activation == RELU6 ? 0 : -infinity;
    p.high = r.activation == RELU6 ? 6 : infinity;
    return;
  }
  p.factor = keep(r.scale, out.channels);
  p.zero_out = out.zero, p.unit = out.scale, p.inverse_unit = 1 / out.scale;
  p.offset = static_cast<float>(out.zero);
  if (r.second >= 0) {
    p.scale_second = values_[r.second].scale / out.scale;
    p.offset = p.offset - static_cast<float>(values_[r.second].zero) * p.scale_second;
  }
  const float zero = static_cast<float>(out.zero), far = 1e6f;
  p.low = r.activation == RELU || r.activation == RELU6 ? zero : -far;
  p.high = r.activation == RELU6 ? 6 * p.inverse_unit + zero : far;
}

// The weights as tiles read them when several images are computed at once.
void Plan::place_tiles(Packed& p, int outputs, int taps) {
  const long row = static_cast<long>(taps) * p.tap_bytes, size = static_cast<long>(p.steps) * 1024;
  constants_.emplace_back(static_cast<size_t>(round_up(outputs, 32)) / 16 * size / sizeof(float));
  int8_t* to = reinterpret_cast<int8_t*>(constants_.back().data());
  p.tiles = to;
  for (long o = 0; o < outputs; o++)
    for (long k = 0; k < row; k++)
      to[(o / 32 * 2 * p.steps + k / 64 * 2 + o / 16 % 2) * 1024 + k % 64 / 4 * 64 + o % 16 * 4 + k % 4] = p.weight[o * row + k];
}

}  // namespace prunegym
