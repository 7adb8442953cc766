// A gate's policy: two small layers on features. The features themselves are in features.h and packed/layers.h.
#pragma once
#include "activation.h"

namespace prunegym {
namespace VARIANT {

// Averages over a row of cells of the grid x grid raster (as torch's adaptive_avg_pool2d), from the sums of the columns
// there. These are overwritten, and up to two vectors after them may be read.
static void average_cells(const Gate& g, int gy, float* columns, float* out) {
  const int grid = g.grid;
  if (g.halves) {  // cells of equal width, a power of two: sums of two neighbours, until there is one for each cell
    for (int size = g.in.width / 2; size >= grid; size /= 2)
      for (int x = 0; x < size; x += LANES) {
        const Vec a = load(columns + 2 * x), b = load(columns + 2 * x + LANES);
        store(columns + x, even_lanes(a, b) + odd_lanes(a, b));
      }
    for (int gx = 0; gx < grid; gx++) out[gx] = columns[gx] * g.cell_share;
    return;
  }
  const int height = g.edges[2 * gy + 1] - g.edges[2 * gy];
  for (int gx = 0; gx < grid; gx++) {
    const int left = g.edges[2 * (grid + gx)], right = g.edges[2 * (grid + gx) + 1];
    float total = 0;
    for (int x = left; x < right; x++) total += columns[x];
    out[gx] = total / (height * (right - left));
  }
}

// Whether a channel's average is that of its cells, for all are of one size.
INLINE bool averages_cells(const Gate& g) { return g.average && g.halves; }
INLINE float average_of(const float* cells, int count) {
  float total = 0;
  for (int k = 0; k < count; k++) total += cells[k];
  return total / count;
}

// Some numbers, each with the row of a matrix that it is multiplied with.
struct Terms {
  int count;
  int32_t* rows;
  float* values;

  COMMON void add(int row, float value) { rows[count] = row, values[count++] = value; }
};

// sums += values * rows of weights, V vectors of them. Two chains of additions, for one would wait for itself.
template <int V>
INLINE void add_rows(const Terms& terms, const float* weights, long distance, float* sums) {
  Vec even[V], odd[V] = {};
  UNROLL for (int v = 0; v < V; v++) even[v] = load(sums + v * LANES);
  const auto add = [&](int i, Vec(&to)[V]) {
    const float* row = weights + terms.rows[i] * distance;
    const Vec value = broadcast(terms.values[i]);
    UNROLL for (int v = 0; v < V; v++) to[v] += value * load(row + v * LANES);
  };
  int i = 0;
  for (; i + 1 < terms.count; i += 2) add(i, even), add(i + 1, odd);
  if (i < terms.count) add(i, even);
  UNROLL for (int v = 0; v < V; v++) store(sums + v * LANES, even[v] + odd[v]);
}

// The same for `padded` numbers (whole lines).
static void add_terms(const Terms& terms, const float* weights, int padded, float* sums) {
  int k = 0;
  for (; k + 4 * LANES <= padded; k += 4 * LANES) add_rows<4>(terms, weights + k, padded, sums + k);
  for (; k < padded; k += LANES) add_rows<1>(terms, weights + k, padded, sums + k);
}

// Returns how many channels are kept, and writes their numbers. Only features of stored channels are computed. Absent
// channels contribute the same for every image (Gate::start_absent).
//
// features(scratch, f): calls f(place, feature) for them.
template <typename F>
INLINE int decide_by(const Gate& g, Kept in, int* kept, float* scratch, F features) {
  const int most = round_up(larger(g.features(), g.hidden), LINE);
  float* hidden = scratch;
  float* logits = hidden + g.hidden_padded;
  float* values = logits + g.width_padded;
  Terms terms{0, reinterpret_cast<int32_t*>(values + most), values};
  const bool all = in.count == g.in_channels;
  __builtin_memcpy(hidden, all ? g.start : g.start_absent, g.hidden_padded * sizeof(float));
  features(values + 2 * most, [&](int at, float z) { terms.add(at, all ? z : z - g.absent[at]); });
  add_terms(terms, g.weight1, g.hidden_padded, hidden);
  __builtin_memcpy(logits, g.bias2, g.width_padded * sizeof(float));
  terms.count = 0;
  for (int h = 0; h < g.hidden; h++)
    if (hidden[h] > 0) terms.add(h, hidden[h]);
  add_terms(terms, g.weight2, g.width_padded, logits);
  int count = 0;
  for (int c = 0; c < g.width; c++) {
    kept[count] = c;
    count += logits[c] > 0;
  }
  return count;
}

}  // namespace VARIANT
}  // namespace prunegym
