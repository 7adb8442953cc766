// What a plan refuses. Python's PlanBuilder checks the same, with better messages. The checks here make sure that a wrong
// record never reads or writes outside of its arrays.
#include <stdexcept>
#include <string>

#include "plan.h"

namespace prunegym {
namespace {

class Checker {
 public:
  explicit Checker(const NetworkRecord& n)
      : buffers_(n.buffers, n.buffers + n.buffer_count), values_(n.values, n.values + n.value_count),
        widths_(n.widths, n.widths + n.gate_count), gates_(n.gate_count), made_(values_.size(), 0),
        placed_(values_.size(), 0) {
    long mask_size = 0;
    for (int width : widths_) {
      starts_.push_back(static_cast<int>(mask_size));
      need(width >= 1 && (mask_size += width) <= MAX_CHANNELS * 16, "the width of a gate");
    }
    long list_size = mask_size;
    for (int i = 0; i < n.space_count; i++) {
      const SpaceRecord& r = n.spaces[i];
      need(r.channels >= 1 && r.index && (list_size += r.channels) <= MAX_CHANNELS * 64, "the size of a space");
      for (int c = 0; c < r.channels; c++) need(r.index[c] >= -1 && r.index[c] < mask_size, "a mask bit of a space");
      widths_.push_back(r.channels), spaces_.push_back(r);
    }
    for (const BufferRecord& b : buffers_) {
      const bool vector = b.stride == 0 && b.height == 1 && b.width == 1;
      need(b.channels >= 1 && b.channels <= MAX_CHANNELS && b.height >= 1 && b.width >= 1, "the size of a buffer");
      need(b.zero == FLOATS || (!vector && b.zero >= PAIRS && b.zero <= 255), "the zero of a buffer");
      need(vector || (b.stride > b.width && (b.height + 4L) * b.stride <= MAX_PIXELS), "the row stride of a buffer");
    }
    for (const ValueRecord& v : values_) {
      need(v.buffer >= 0 && v.buffer < n.buffer_count, "the buffer of a value");
      const BufferRecord& b = buffers_[v.buffer];
      need(v.zero == b.zero && (v.zero == FLOATS || (v.scale > 0 && v.scale < 1e30f)), "the scale of a value");
      need(v.zero != PAIRS || v.scale == 1, "the scale of a value");
      need(v.channels >= 1 && v.channels <= MAX_CHANNELS, "the channels of a value");
      need((v.channels + per(v.zero) - 1) / per(v.zero) <= b.channels, "the channels of a value");
      const bool is_space = v.space >= 0 && v.space < static_cast<int>(widths_.size());
      need(v.space == -1 || (is_space && widths_[v.space] == v.channels), "the space of a value");
    }
  }

  void layer(const LayerRecord& r) {
    const bool reads = r.kind != LOAD && r.kind != COMPENSATE, writes = r.kind != DECIDE && r.kind != LOOK && r.kind != STORE;
    need(r.kind >= LOAD && r.kind <= STORE, "its kind");
    need(reads ? is_made(r.input) : r.input == -1, "its input");
    need(writes ? r.output >= 0 && r.output < count() && !made_[r.output] : r.output == -1, "its output");
    need(!writes || r.kind == PLACE || placed_[r.output] == 0, "its output");
    const bool two = r.kind == CONV || r.kind == ADD || r.kind == SCALE || r.kind == LINEAR;
    need(r.second == -1 ? r.kind != SCALE : two && is_made(r.second), "its second input");
    need(r.biases == -1 || (r.kind == CONV && is_made(r.biases)), "its biases");
    need(r.activation >= NO_ACTIVATION && r.activation < ACTIVATIONS, "its activation");
    need(r.offset >= 0 && (r.kind == STORE || r.offset <= MAX_CHANNELS), "its offset");
    types(r);
    switch (r.kind) {
      case LOAD: break;
      case CONV: conv(r); break;
      case DEPTHWISE: depthwise(r); break;
      case MAX_POOL: case AVG_POOL: pool(r); break;
      case ADD: same_shape(r.input, r.output); if (r.second >= 0) same_shape(r.second, r.output); break;
      case SUBSAMPLE: subsample(r); break;
      case AVERAGE: need(is_map(r.input) && is_vector(r.output), "its shapes"), same_channels(r.input, r.output); break;
      case LINEAR: linear(r); break;
      case PLACE: place(r); break;
      case SCALE: scale(r); break;
      case EXPAND: expand(r); break;
      case COMPENSATE: compensate(r); break;
      case CONVERT: same_shape(r.input, r.output), need(is_map(r.input), "its shapes"); break;
      case DECIDE: decide(r); break;
      case LOOK: features(r); break;
      case STORE: store(r);
    }
    if (writes && r.kind != PLACE) made_[r.output] = 1;
  }

 private:
  static void need(bool fine, const char* what) {
    if (!fine) throw std::invalid_argument(std::string(what) + " is out of range");
  }
  int count() const { return static_cast<int>(values_.size()); }
  bool is_gate(int gate) const { return gate >= 0 && gate < gates_; }
  bool is_made(int value) const { return value >= 0 && value < count() && made_[value]; }
  const BufferRecord& shape(int value) const { return buffers_[values_[value].buffer]; }
  bool is_vector(int value) const { return shape(value).stride == 0; }
  bool is_map(int value) const { return !is_vector(value); }
  void same_channels(int a, int b) const {
    need(values_[a].channels == values_[b].channels && values_[a].space == values_[b].space, "its number of channels");
  }
  void same_size(int a, int b) const {
    need(is_vector(a) == is_vector(b) && shape(a).height == shape(b).height && shape(a).width == shape(b).width, "its shape");
  }
  void same_shape(int a, int b) const { same_channels(a, b), same_size(a, b); }
  void arrays(const LayerRecord& r, long inputs, long outputs) const {
    need(r.weight && r.bias && inputs <= MAX_FLOATS / outputs, "its weights");
  }

  // FLOATS, PAIRS, or 0 for bytes.
  int type(int value) const { return value < 0 ? FLOATS : values_[value].zero < 0 ? values_[value].zero : 0; }
  bool is_packed(int value) const { return type(value) != FLOATS; }
  static int per(int zero) { return zero == FLOATS ? 1 : zero == PAIRS ? 2 : 4; }  // channels in 32 bits

  // Which values of a layer are bytes or bfloat16.
  void types(const LayerRecord& r) const {
    const bool in = is_packed(r.input), out = is_packed(r.output), same = type(r.input) == type(r.output);
    const char* what = "the type of a value";
    switch (r.kind) {
      case CONV:
        need(same && (r.second < 0 || type(r.second) == type(r.input)) && !is_packed(r.biases), what);
        need(!in || (r.groups == 1 && (r.scale || type(r.input) == PAIRS)), "its groups or scales");
        return;
      case MAX_POOL: case SUBSAMPLE:
        need(same && !is_packed(r.second), what);
        if (in) need(values_[r.input].zero == values_[r.output].zero && values_[r.input].scale == values_[r.output].scale, what);
        if (in && r.kind == MAX_POOL) need(r.activation <= RELU, "its activation");
        if (in && r.kind == SUBSAMPLE)
          need(r.offset % per(type(r.input)) == 0 && values_[r.input].channels % per(type(r.input)) == 0, "its number of channels");
        return;
      case CONVERT: return need(in != out, what);
      case AVERAGE: case DECIDE: case LOOK: return need(!out, what);
      default: need(!in && !out && !is_packed(r.second), what);
    }
  }

  // Height and width of the output of a convolution or a pooling.
  void window(const LayerRecord& r, long rows, long columns) const {
    need(is_map(r.input) && is_map(r.output), "its shapes");
    const BufferRecord &in = shape(r.input), &out = shape(r.output);
    need(r.stride >= 1 && r.stride <= MAX_PIXELS, "its stride");
    // As torch counts: floor((size + 2 padding - kernel) / stride) + 1, plus one if a last window may reach beyond the
    // picture, unless it begins in the padding on that side.
    const auto fits = [&](long size, long kernel, long padding, long made) {
      const long room = size + 2 * padding - kernel;
      long windows = (room + (r.ceil ? r.stride - 1 : 0)) / r.stride + 1;
      if (r.ceil && (windows - 1) * r.stride >= size + padding) windows--;
      return room >= 0 && made == windows;
    };
    need(fits(in.height, rows, r.padding, out.height) && fits(in.width, columns, r.padding_width, out.width), "its shape");
  }

  void pool(const LayerRecord& r) const {
    need(r.kernel >= 1 && r.kernel <= MAX_PIXELS && r.kernel_width == r.kernel, "its kernel");
    need(r.padding >= 0 && r.padding <= r.kernel / 2 && r.padding_width == r.padding, "its padding");
    need((r.ceil == 0 || r.ceil == 1) && (r.average == 0 || r.average == 1), "its settings");
    window(r, r.kernel, r.kernel);
    same_channels(r.input, r.output);
  }

  // A convolution's kernel, padding and dilation. The reach of a kernel is an int, so it has a limit.
  void kernel(const LayerRecord& r) const {
    need(r.kernel >= 1 && r.kernel <= MAX_KERNEL && r.kernel_width >= 1 && r.kernel_width <= MAX_KERNEL, "its kernel");
    need(r.padding >= 0 && r.padding <= MAX_PADDING && r.padding_width >= 0 && r.padding_width <= MAX_PADDING, "its padding");
    need(r.dilation >= 1 && r.dilation <= MAX_DILATION && r.ceil == 0, "its dilation");
    const long down = (r.kernel - 1L) * r.dilation, right = (r.kernel_width - 1L) * r.dilation;
    window(r, down + 1, right + 1);
    const BufferRecord& out = shape(r.output);
    need((out.height + down + 4) * (out.width + right + 4) <= MAX_PIXELS, "its dilation");
  }

  void conv(const LayerRecord& r) const {
    kernel(r);
    if (r.second >= 0) need(is_map(r.second), "its second input"), same_shape(r.second, r.output);
    if (r.biases >= 0) biases(r.biases, r.output);
    const long inputs = values_[r.input].channels, outputs = values_[r.output].channels;
    need(r.groups >= 1 && inputs % r.groups == 0 && outputs % r.groups == 0, "its groups");
    arrays(r, inputs / r.groups * r.kernel * r.kernel_width, outputs);
  }

  void depthwise(const LayerRecord& r) const {
    kernel(r);
    same_channels(r.input, r.output);
    arrays(r, r.kernel * r.kernel_width, values_[r.output].channels);
  }

  // Parts come in the order of their channels, and the last one completes the value.
  void place(const LayerRecord& r) {
    same_size(r.input, r.output);
    const ValueRecord &in = values_[r.input], &out = values_[r.output];
    need(r.offset == placed_[r.output] && r.offset + static_cast<long>(in.channels) <= out.channels, "its offset");
    need((r.weight != nullptr) == (r.bias != nullptr), "its weights");
    const auto bits = [&](int space, int channel) {
      if (space < 0) return -1;
      if (space >= gates_) return spaces_[space - gates_].index[channel];
      return starts_[space] + channel;
    };
    for (int c = 0; c < in.channels; c++) need(bits(in.space, c) == bits(out.space, r.offset + c), "its space");
    placed_[r.output] += in.channels;
    made_[r.output] = placed_[r.output] == out.channels;
  }

  void scale(const LayerRecord& r) const {
    same_shape(r.input, r.output), same_channels(r.second, r.output);
    need(is_vector(r.second) && shape(r.input).stride == shape(r.output).stride, "its shapes");
  }

  void expand(const LayerRecord& r) const {
    same_size(r.input, r.output);
    need(values_[r.input].channels == values_[r.output].channels && values_[r.output].space == -1, "its channels");
  }

  void store(const LayerRecord& r) const {
    const BufferRecord& in = shape(r.input);
    need(r.offset + static_cast<long>(values_[r.input].channels) * in.height * in.width <= INT32_MAX, "its size");
  }

  void subsample(const LayerRecord& r) const {
    need(is_map(r.input) && is_map(r.output) && r.stride >= 1 && r.stride <= MAX_PIXELS, "its stride");
    const BufferRecord &in = shape(r.input), &out = shape(r.output);
    need(out.height == (in.height - 1) / r.stride + 1 && out.width == (in.width - 1) / r.stride + 1, "its shape");
    need(values_[r.input].space == -1 && values_[r.output].space == -1, "its space");
  }

  void linear(const LayerRecord& r) const {
    need(is_vector(r.output), "its output");
    if (r.second >= 0) biases(r.second, r.output);
    const BufferRecord& in = shape(r.input);
    arrays(r, values_[r.input].channels * static_cast<long>(in.height) * in.width, values_[r.output].channels);
  }

  // Biases are read by the number of the channel, so the vector has all of them.
  void biases(int value, int output) const {
    need(is_vector(value) && values_[value].space == -1 && values_[value].channels == values_[output].channels, "its biases");
  }

  void compensate(const LayerRecord& r) const {
    need(is_vector(r.output) && values_[r.output].space == -1, "its output");
    need(r.gate >= 0 && r.gate < static_cast<int>(widths_.size()), "its gate");
    if (!is_gate(r.gate))
      for (int c = 0; c < widths_[r.gate]; c++) need(spaces_[r.gate - gates_].index[c] >= 0, "its gate");
    arrays(r, widths_[r.gate], values_[r.output].channels);
  }

  void features(const LayerRecord& r) const {
    need((r.average == 0 || r.average == 1) && r.grid >= 0 && r.grid <= 1024, "its features");
    const long size = values_[r.input].channels * (r.average + static_cast<long>(r.grid) * r.grid);
    need(r.mean && r.scale && size >= 1 && size <= MAX_PIXELS, "its features");
  }

  void decide(const LayerRecord& r) const {
    features(r);
    need(is_gate(r.gate) && r.hidden >= 1 && r.hidden <= MAX_CHANNELS, "its gate");
    need(r.weight && r.bias && r.weight2 && r.bias2, "its weights");
  }

  const std::vector<BufferRecord> buffers_;
  const std::vector<ValueRecord> values_;
  std::vector<int> widths_, starts_;
  const int gates_;
  std::vector<SpaceRecord> spaces_;
  std::vector<char> made_;
  std::vector<int> placed_;
};

}  // namespace

void check_network(const NetworkRecord& network) {
  Checker checker(network);
  for (int i = 0; i < network.layer_count; i++) {
    try {
      checker.layer(network.layers[i]);
    } catch (const std::invalid_argument& e) {
      throw std::invalid_argument("layer " + std::to_string(i) + ": " + e.what());
    }
  }
}

}  // namespace prunegym
