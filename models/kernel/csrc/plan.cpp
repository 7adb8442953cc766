// Building a plan: constants copied, layers cut into segments, buffers given their places.
#include "plan.h"
#include "sizes.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>
#include <stdexcept>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace prunegym {

Floats::Floats(size_t count) {
  constexpr size_t huge = 2 << 20;
  size_t bytes = (count + OVERREAD) * sizeof(float);
  const size_t unit = bytes > huge ? huge : 64;
  bytes = (bytes + unit - 1) / unit * unit;
  float* data = static_cast<float*>(std::aligned_alloc(unit, bytes));
  if (!data) throw std::bad_alloc();
  data_.reset(data);
#ifdef __linux__
  if (unit == huge) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  std::memset(data, 0, bytes);
}

Plan::Plan(const Variants& variants, const NetworkRecord& network)
    : variants_(variants), values_(network.values, network.values + network.value_count),
      widths_(network.widths, network.widths + network.gate_count), decided_(widths_.size(), 0),
      gates_(network.gate_count) {
  check_network(network);
  for (int i = 0; i < network.buffer_count; i++) {
    const BufferRecord& r = network.buffers[i];
    const Map map = make_map(r.height, r.width, r.stride);
    Buffer buffer{map, round_up(static_cast<long>(r.channels) * map.channel, LINE) + OVERREAD, false, 0, 0};
    const int32_t frame = r.zero < 0 ? 0 : r.zero * 0x01010101;
    std::memcpy(&buffer.fill, &frame, sizeof(frame));
    buffers_.push_back(buffer);
  }
  mask_size_ = std::accumulate(widths_.begin(), widths_.end(), 0);
  for (int i = 0; i < network.space_count; i++) {
    const SpaceRecord& r = network.spaces[i];
    widths_.push_back(r.channels);
    spaces_.emplace_back(r.index, r.index + r.channels);
  }
  for (int width : widths_) {
    starts_.push_back(list_size_);
    list_size_ += width;
  }
  for (const ValueRecord& v : values_) all_channels_.resize(std::max<size_t>(all_channels_.size(), v.channels));
  std::iota(all_channels_.begin(), all_channels_.end(), 0);
  for (int i = 0; i < network.layer_count; i++) {
    layers_.emplace_back().record = network.layers[i];
    layers_.back().loaded = -1;
    place_layer(layers_.back());
  }
  std::vector<char> filled(widths_.size(), 0);
  for (Layer& layer : layers_) {
    const int space = layer.record.output >= 0 ? values_[layer.record.output].space : -1;
    layer.fills = space >= gates_ && !filled[space] ? space : -1;
    if (space >= 0) filled[space] = 1;
  }
  join_loads();
  cut_segments();
  place_buffers();
}

// An input that is only made bytes of need not be copied before.
void Plan::join_loads() {
  for (Layer& load : layers_) {
    if (load.record.kind != LOAD) continue;
    Layer* reader = nullptr;
    int readers = 0;
    for (Layer& layer : layers_)
      for (int value : {layer.record.input, layer.record.second, layer.record.biases})
        if (value == load.record.output) reader = &layer, readers++;
    if (readers == 1 && reader->record.kind == CONVERT) load.loaded = reader->loaded = load.record.offset;
  }
}

// The valid positions of a grid that is a map from its origin: all but the zero columns.
static std::vector<int32_t> valid_positions(const Map& map, int positions) {
  std::vector<int32_t> valid(positions, 0);
  for (int y = 0; y < map.height; y++)
    for (int x = 0; x < map.width; x++) valid[y * map.stride + 1 + x] = -1;
  return valid;
}

void Plan::place_layer(Layer& layer) {
  const LayerRecord& r = layer.record;
  const ValueRecord none{0, 0, -1, FLOATS, 0};
  const ValueRecord &in = r.input >= 0 ? values_[r.input] : none, &out = r.output >= 0 ? values_[r.output] : none;
  if (r.kind == STORE) output_size_ = std::max(output_size_, r.offset + static_cast<long>(in.channels) * map_of(r.input).pixels());
  if (r.kind == LOAD) inputs_ = std::max(inputs_, r.offset + 1);
  if (r.kind == DECIDE) place_gate(layer);
  if (r.kind == LOOK) place_features(layer);
  if (r.kind == LINEAR) {
    const size_t size = static_cast<size_t>(in.channels) * map_of(r.input).pixels();
    const bool by_columns = map_of(r.input).is_vector() && out.space < 0;
    layer.record.hidden = by_columns;
    layer.record.weight = by_columns ? keep_transposed(r.weight, out.channels, in.channels) : keep(r.weight, size * out.channels);
    layer.record.bias = keep(r.bias, out.channels);
    scratch_size_ = std::max(scratch_size_, static_cast<long>(size + in.channels * LINE + LINE));
  }
  if (r.kind == COMPENSATE) {
    for (int c = 0; c < widths_[r.gate]; c++)
      layer.bits.push_back(r.gate < gates_ ? starts_[r.gate] + c : spaces_[r.gate - gates_][c]);
    const int rows = static_cast<int>(layer.bits.size());
    layer.record.weight = keep_padded(r.weight, rows, out.channels), layer.record.bias = keep(r.bias, out.channels);
    scratch_size_ = std::max(scratch_size_, static_cast<long>(rows));
  }
  if (r.kind == PLACE && r.weight) {
    layer.record.weight = keep(r.weight, out.channels), layer.record.bias = keep(r.bias, out.channels);
  }
  if (r.kind == DEPTHWISE) {
    layer.record.weight = keep(r.weight, static_cast<size_t>(in.channels) * r.kernel * r.kernel_width);
    layer.record.bias = keep(r.bias, in.channels);
    scratch_size_ = std::max(scratch_size_, depthwise_scratch(r, map_of(r.output)));
  }
  if (r.kind == MAX_POOL || r.kind == AVG_POOL)
    scratch_size_ = std::max(scratch_size_, pool_scratch(r, map_of(r.input), map_of(r.output)));
  if (r.kind == CONV) place_conv(layer);
}

void Plan::place_conv(Layer& layer) {
  const LayerRecord& r = layer.record;
  const ValueRecord &in = values_[r.input], &out = values_[r.output];
  Conv& c = layer.conv;
  c.height = r.kernel, c.width = r.kernel_width, c.stride = r.stride, c.padding = r.padding;
  c.padding_width = r.padding_width, c.dilation = r.dilation, c.groups = r.groups, c.activation = r.activation;
  c.in_channels = in.channels, c.out_channels = out.channels;
  c.bias = keep(r.bias, out.channels);
  c.in = map_of(r.input), c.out = map_of(r.output);
  if (r.second >= 0) c.residual = map_of(r.second);
  c.fill = buffers_[in.buffer].fill;
  c.packed.zero_in = std::max(in.zero, 0);
  variant_of(r).plan_conv(c, r.second >= 0);
  const size_t filters = static_cast<size_t>(out.channels) * c.group_inputs();
  if (in.zero != FLOATS) place_packed_weights(layer), place_ends(layer);
  else if (c.path == Path::winograd) c.weight = keep_transformed(r.weight, out.channels, in.channels);
  else c.weight = keep(r.weight, filters * c.tap_count());
  if (c.path == Path::in_place) {
    valid_.push_back(valid_positions(c.out, c.vectors * variant_of(r).lanes));
    c.valid = valid_.back().data();
  }
  planes_size_ = std::max(planes_size_, c.planes_size);
  scratch_size_ = std::max(scratch_size_, c.scratch_size);
}

// The cells of a grid, as in torch's adaptive_avg_pool2d.
void Plan::place_cells(Gate& g) {
  std::vector<int32_t> edges;
  for (int size : {g.in.height, g.in.width})
    for (long cell = 0; cell < g.grid; cell++) {
      edges.push_back(static_cast<int32_t>(cell * size / g.grid));
      edges.push_back(static_cast<int32_t>(((cell + 1) * size + g.grid - 1) / g.grid));
    }
  edges_.push_back(edges);
  g.edges = edges_.back().data();
  const bool even = g.grid && g.in.height % g.grid == 0 && g.in.width % g.grid == 0;
  const int height = even ? g.in.height / g.grid : 0, width = even ? g.in.width / g.grid : 0;
  g.halves = even && (width & (width - 1)) == 0;
  g.cell_share = even ? 1.f / (static_cast<float>(height) * width) : 0;
}

// For each of up to four channels its cells and a row of the map.
static long features_scratch(const Gate& g) {
  return 4L * (round_up(g.in.width, LINE) + round_up(g.grid * g.grid, LINE) + 3 * LINE);
}

void Plan::place_features(Layer& layer) {
  const LayerRecord& r = layer.record;
  Gate& g = layer.gate;
  g.in = map_of(r.input), g.in_channels = values_[r.input].channels, g.average = r.average, g.grid = r.grid;
  std::vector<float> absent(g.features());
  for (int f = 0; f < g.features(); f++) absent[f] = std::min(10.f, std::max(-10.f, -r.mean[f] * r.scale[f]));
  place_cells(g);
  g.mean = keep(r.mean, absent.size()), g.scale = keep(r.scale, absent.size());
  g.absent = keep(absent.data(), absent.size());
  scratch_size_ = std::max(scratch_size_, features_scratch(g));
}

void Plan::place_gate(Layer& layer) {
  const LayerRecord& r = layer.record;
  Gate& g = layer.gate;
  place_features(layer);
  g.width = widths_[r.gate], g.hidden = r.hidden;
  g.hidden_padded = round_up(g.hidden, LINE), g.width_padded = round_up(g.width, LINE);
  const int features = g.features();
  std::vector<float> absent(r.bias, r.bias + g.hidden);
  for (int h = 0; h < g.hidden; h++)
    for (int f = 0; f < features; f++) absent[h] += r.weight[static_cast<size_t>(h) * features + f] * g.absent[f];
  g.weight1 = keep_transposed(r.weight, g.hidden, features), g.weight2 = keep_transposed(r.weight2, g.width, g.hidden);
  g.start = keep_transposed(r.bias, g.hidden, 1), g.bias2 = keep_transposed(r.bias2, g.width, 1);
  g.start_absent = keep_transposed(absent.data(), g.hidden, 1);
  decided_[r.gate] = 1;
  const int terms = 2 * round_up(std::max(features, g.hidden), LINE);
  scratch_size_ = std::max(scratch_size_, features_scratch(g) + g.hidden_padded + g.width_padded + terms);
}

// Runs by chunks if the weights need more than half of a small second-level cache and few pixels share them.
void Plan::cut_segments() {
  constexpr size_t many_weights = 64 << 10, few_pixels = 100;
  for (int i = 0; i < static_cast<int>(layers_.size()); i++) {
    const Conv& c = layers_[i].conv;
    const bool small = layers_[i].record.kind == CONV && c.path != Path::winograd && static_cast<size_t>(c.out.pixels()) <= few_pixels;
    const bool by_chunks = small && (c.packed.tiles ||
                           static_cast<size_t>(c.group_inputs()) * c.out_channels * c.tap_count() >= many_weights);
    const bool looked = i > 0 && layers_[i - 1].record.kind == LOOK;
    if (by_chunks || looked || segments_.empty() || segments_.back().by_chunks) segments_.push_back(Segment{i, i, by_chunks});
    segments_.back().last = i + 1;
    if (by_chunks) chunk_planes_size_ = std::max({chunk_planes_size_, c.planes_size, c.packed.together_size});
  }
}

// If all values of a buffer are written and read within one image-by-image segment, all images share it, so it stays in
// the cache.
void Plan::place_buffers() {
  std::vector<int> made(values_.size(), -1);
  for (int s = 0; s < static_cast<int>(segments_.size()); s++) {
    for (int i = segments_[s].first; i < segments_[s].last; i++) {
      const LayerRecord& r = layers_[i].record;
      for (int value : {r.input, r.second, r.biases, r.output}) {
        if (value < 0) continue;
        if (value == r.output) made[value] = s;
        buffers_[values_[value].buffer].per_image |= segments_[s].by_chunks || made[value] != s;
      }
    }
  }
  for (Buffer& b : buffers_) {
    long& total = b.per_image ? image_size_ : shared_size_;
    b.place = total;
    total += round_up(b.size, LINE);
    if (total > MAX_FLOATS) throw std::bad_alloc();
  }
}

}  // namespace prunegym
