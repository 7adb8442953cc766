// Running the layers of a plan for one group of images.
#pragma once
#include <algorithm>
#include <chrono>
#include <cstring>

#include "plan.h"

namespace prunegym {

constexpr int GROUP = 32;                    // images that use a chunk of weights together
constexpr long CHUNK_FLOATS = 48 << 10;      // weights of a chunk; with the maps they must fit in a second-level cache
constexpr long CHUNK_BYTES = 512 << 10;
constexpr long PREFETCH_FLOATS = 16 << 10;   // layers with more weights than this prefetch them

// One group of images on one thread, or on a team that shares each image.
class Runner {
 public:
  // Images first..first + count - 1 of each input; masks, outputs and features are those of the first.
  Runner(const Plan& plan, Workspace& space, int count, const Images* inputs, long first, uint8_t* masks, float* outputs,
         double* seconds, float* features = nullptr)
      : plan_(plan), space_(space), count_(count), inputs_(inputs), first_(first), masks_(masks), outputs_(outputs),
        seconds_(seconds), features_(features) {}

  void run() { run(0, static_cast<int>(plan_.segments_.size())); }

  void run(int first, int last) {
    for (int image = 0; image < count_; image++) read_masks(image);
    if (space_.team) space_.team->during([&] { run_segments(first, last); });
    else run_segments(first, last);
  }

 private:
  void run_segments(int first, int last) {
    for (int s = first; s < last; s++) {
      const Segment& segment = plan_.segments_[s];
      if (segment.by_chunks && count_ > 1 && !space_.team) {
        timed(segment.first, [&] { conv_by_chunks(plan_.layers_[segment.first]); });
        continue;
      }
      for (int image = 0; image < count_; image++)
        for (int i = segment.first; i < segment.last; i++) timed(i, [&] { layer(plan_.layers_[i], image); });
    }
  }

  template <typename F>
  void timed(int layer, F f) {
    if (!seconds_) return f();
    const auto start = std::chrono::steady_clock::now();
    f();
    seconds_[layer] += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  int* kept_list(int image, int space) {
    return space_.kept.data() + static_cast<size_t>(image) * plan_.list_size_ + plan_.starts_[space];
  }
  int& kept_count(int image, int space) { return space_.counts[image * plan_.widths_.size() + space]; }
  uint8_t* mask(int image) { return masks_ + static_cast<size_t>(image) * plan_.mask_size_; }

  void read_masks(int image) {
    for (int gate = 0; gate < plan_.gates_; gate++) {
      if (plan_.decided_[gate]) continue;
      const uint8_t* bits = mask(image) + plan_.starts_[gate];
      int* list = kept_list(image, gate);
      int n = 0;
      for (int c = 0; c < plan_.widths_[gate]; c++) {  // without a branch, which would be predicted wrong half of the time
        list[n] = c;
        n += bits[c] != 0;
      }
      kept_count(image, gate) = n;
    }
  }

  // The kept channels of a space that has channels of several gates, after these gates are decided.
  void fill(int image, int space) {
    if (space < 0) return;
    const std::vector<int32_t>& index = plan_.spaces_[space - plan_.gates_];
    const uint8_t* bits = mask(image);
    int* list = kept_list(image, space);
    int n = 0;
    for (int c = 0; c < static_cast<int>(index.size()); c++) {
      list[n] = c;
      n += index[c] < 0 || bits[index[c]] != 0;
    }
    kept_count(image, space) = n;
  }

  Kept kept(int value, int image) {
    const ValueRecord& v = plan_.values_[value];
    if (v.space < 0) return Kept{v.channels, plan_.all_channels_.data()};
    return Kept{kept_count(image, v.space), kept_list(image, v.space)};
  }
  float* data(int value, int image) { return space_.buffer(plan_, plan_.values_[value].buffer, image); }
  View view(int value, int image) {
    if (value < 0) return View{nullptr, 0, Kept{0, nullptr}, nullptr, FLOATS, 0};
    const ValueRecord& v = plan_.values_[value];
    return View{&plan_.map_of(value), v.channels, kept(value, image), data(value, image), v.zero, v.scale};
  }

  ConvCall conv_call(const Layer& layer, int image) {
    const LayerRecord& r = layer.record;
    ConvCall call{};
    call.in_kept = kept(r.input, image), call.out_kept = kept(r.output, image);
    call.bias = r.biases >= 0 ? data(r.biases, image) : layer.conv.bias;
    call.residual = r.second >= 0 ? data(r.second, image) : nullptr;
    call.output = data(r.output, image);
    call.scratch = space_.scratch.data();
    return call;
  }

  void conv_alone(const Layer& layer, int image) {
    const Conv& c = layer.conv;
    ConvCall call = conv_call(layer, image);
    const float* map = data(layer.record.input, image);
    float* planes = space_.planes.data();
    call.prefetch = count_ == 1 && static_cast<long>(c.group_inputs()) * c.out_channels * c.tap_count() > PREFETCH_FLOATS;
    const Variant& v = plan_.variant_of(layer.record);
    if (space_.team && space_.team->awake()) return conv_by_team(v, c, call, map, planes);
    call.input = v.prepare_conv(c, call.in_kept, map, planes);
    call.last = c.shares(call.out_kept.count);
    v.conv(c, call);
  }

  // Each thread prepares some of the input channels, then computes its share.
  void conv_by_team(const Variant& v, const Conv& c, const ConvCall& call, const float* map, float* planes) {
    Team& team = *space_.team;
    const auto begin = [&](int count, int part) { return static_cast<int>(static_cast<long>(count) * part / team.parts()); };
    const bool whole = c.packed.weight != nullptr;  // panels have all channels of some pixels
    const float* input = v.prepare_conv(c, whole ? call.in_kept : Kept{0, nullptr}, map, planes);
    if (!whole && (c.path == Path::copies || c.path == Path::two_by_two)) {
      team.run([&](int part) {
        const int first = begin(call.in_kept.count, part), last = begin(call.in_kept.count, part + 1);
        v.prepare_conv(c, Kept{last - first, call.in_kept.index + first},
                                    map + static_cast<long>(first) * c.in.channel,
                                    planes + static_cast<long>(first) * c.input_channel);
      });
    }
    team.run([&](int part) {
      ConvCall own = call;
      own.input = input;
      own.scratch = space_.scratch_of(plan_, part);
      own.first = begin(c.shares(call.out_kept.count), part), own.last = begin(c.shares(call.out_kept.count), part + 1);
      v.conv(c, own);
    });
  }

  void conv_by_chunks(const Layer& layer) {
    const Conv& c = layer.conv;
    const Variant& v = plan_.variant_of(layer.record);
    const int unit = c.packed.weight ? 4 : 1;  // rows of a share
    const long row = static_cast<long>(c.tap_count()) * (c.packed.weight ? c.packed.tap_bytes : c.group_inputs());
    const int chunk = static_cast<int>(std::max(8L, (c.packed.weight ? CHUNK_BYTES : CHUNK_FLOATS) / row));
    ConvCall calls[GROUP];
    for (int image = 0; image < count_; image++) {
      fill(image, layer.fills);
      calls[image] = conv_call(layer, image);
      calls[image].input = data(layer.record.input, image);
    }
    if (c.packed.tiles && v.conv_together(c, calls, count_, space_.chunk_planes.data())) return;
    for (int image = 0; image < count_; image++) {
      calls[image].input =
          v.prepare_conv(c, calls[image].in_kept, data(layer.record.input, image),
                                      space_.chunk_planes.data() + plan_.chunk_planes_size_ * image);
    }
    for (int end = chunk; end < c.out_channels + chunk; end += chunk) {  // output channels below `end`, by number
      for (int image = 0; image < count_; image++) {
        ConvCall& call = calls[image];
        call.first = call.last;
        while (unit * call.last < call.out_kept.count && call.out_kept.index[unit * call.last] < end) call.last++;
        v.conv(c, call);
      }
    }
  }

  void decide(const Layer& layer, int image) {
    const int gate = layer.record.gate;
    int* list = kept_list(image, gate);
    const int n = plan_.variant_of(layer.record).decide(layer.gate, view(layer.record.input, image), list,
                                                        space_.scratch.data());
    kept_count(image, gate) = n;
    uint8_t* bits = mask(image) + plan_.starts_[gate];
    std::memset(bits, 0, plan_.widths_[gate]);
    for (int k = 0; k < n; k++) bits[list[k]] = 1;
  }

  void compensate(const Layer& layer, int image) {
    const LayerRecord& r = layer.record;
    const uint8_t* bits = mask(image);
    int* list = reinterpret_cast<int*>(space_.scratch.data());
    int n = 0;
    for (int row = 0; row < static_cast<int>(layer.bits.size()); row++) {
      list[n] = row;
      n += bits[layer.bits[row]] == 0;
    }
    const View masked{nullptr, static_cast<int>(layer.bits.size()), Kept{n, list}, nullptr, FLOATS, 0};
    plan_.variants_.floats.layers[COMPENSATE](r, masked, view(-1, image), view(r.output, image), nullptr);
  }

  void load(const LayerRecord& r, int image) {
    const View out = view(r.output, image);
    const Images images = inputs_[r.offset].from(first_ + image);
    const int width = out.map->width;
    for (int y = 0; y < out.map->height; y++) {
      for (int c = 0; c < out.kept.count; c++) {
        const float* from = images.data + out.kept.index[c] * images.channel + y * images.row;
        float* to = out.map->is_vector() ? out.data + c : out.row(c, y);
        if (images.column == 1) std::memcpy(to, from, width * sizeof(float));
        else
          for (int x = 0; x < width; x++) to[x] = from[x * images.column];
      }
    }
  }

  // Whether bytes are made of an input where it lies. Its rows are read in whole vectors.
  bool in_place(const Layer& layer, const View& picture) const {
    if (layer.loaded < 0 || picture.map->is_vector() || picture.map->width % LINE) return false;
    const Images& images = inputs_[layer.loaded];
    return images.column == 1 && std::max(images.row, images.channel) <= MAX_PIXELS;
  }

  void convert(const Layer& layer, int image) {
    View in = view(layer.record.input, image);
    Map map = *in.map;
    if (in_place(layer, in)) {
      const Images images = inputs_[layer.loaded].from(first_ + image);
      map.origin = -1, map.stride = static_cast<int>(images.row), map.channel = static_cast<int>(images.channel);
      in.map = &map, in.data = const_cast<float*>(images.data);
    }
    plan_.variant_of(layer.record).layers[CONVERT](layer.record, in, View{}, view(layer.record.output, image), nullptr);
  }

  // All channels in torch's layout, with zeros for masked ones.
  void store(const LayerRecord& r, int image) {
    const View in = view(r.input, image);
    const int pixels = in.map->pixels(), width = in.map->width;
    float* to = outputs_ + static_cast<size_t>(image) * plan_.output_size_ + r.offset;
    if (in.kept.count < in.channels) std::memset(to, 0, static_cast<size_t>(in.channels) * pixels * sizeof(float));
    for (int c = 0; c < in.kept.count; c++) {
      float* channel = to + static_cast<long>(in.kept.index[c]) * pixels;
      if (in.map->is_vector()) *channel = in.data[c];
      else
        for (int y = 0; y < in.map->height; y++)
          std::memcpy(channel + static_cast<long>(y) * width, in.row(c, y), width * sizeof(float));
    }
  }

  void layer(const Layer& layer, int image) {
    const LayerRecord& r = layer.record;
    const Variant& v = plan_.variant_of(r);
    fill(image, layer.fills);
    switch (r.kind) {
      case LOAD: return in_place(layer, view(r.output, image)) ? void() : load(r, image);
      case CONVERT: return convert(layer, image);
      case CONV: return conv_alone(layer, image);
      case DECIDE: return decide(layer, image);
      case LOOK:
        if (features_)
          v.look(layer.gate, view(r.input, image), features_ + static_cast<size_t>(image) * layer.gate.features(), space_.scratch.data());
        return;
      case STORE: return store(r, image);
      case COMPENSATE: return compensate(layer, image);
      default:
        return v.layers[r.kind](r, view(r.input, image), view(r.second, image), view(r.output, image),
                                space_.scratch.data());
    }
  }

  const Plan& plan_;
  Workspace& space_;
  int count_;
  const Images* inputs_;
  long first_;
  uint8_t* masks_;
  float* outputs_;
  double* seconds_;
  float* features_;
};

}  // namespace prunegym
