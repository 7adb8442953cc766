// What a plan refuses. Python's PlanBuilder checks the same and says it better; here it keeps a wrong record from reading
// or writing where it must not.
#include <stdexcept>
#include <string>

#include "plan.h"

namespace prunegym {
namespace {

class Checker {
 public:
  explicit Checker(const NetworkRecord& n)
      : buffers_(n.buffers, n.buffers + n.buffer_count), values_(n.values, n.values + n.value_count),
        widths_(n.widths, n.widths + n.gate_count), made_(values_.size(), 0) {
    long mask_size = 0;
    for (int width : widths_) need(width >= 1 && (mask_size += width) <= MAX_CHANNELS * 16, "the width of a gate");
    for (const BufferRecord& b : buffers_) {
      const bool vector = b.stride == 0 && b.height == 1 && b.width == 1;
      need(b.channels >= 1 && b.channels <= MAX_CHANNELS && b.height >= 1 && b.width >= 1, "the size of a buffer");
      need(vector || (b.stride > b.width && (b.height + 4L) * b.stride <= MAX_PIXELS), "the row stride of a buffer");
    }
    for (const ValueRecord& v : values_) {
      need(v.buffer >= 0 && v.buffer < n.buffer_count, "the buffer of a value");
      need(v.channels >= 1 && v.channels <= buffers_[v.buffer].channels, "the channels of a value");
      need(v.gate == -1 || (is_gate(v.gate) && widths_[v.gate] == v.channels), "the gate of a value");
    }
  }

  void layer(const LayerRecord& r) {
    const bool reads = r.kind != LOAD, writes = r.kind != DECIDE && r.kind != LOOK && r.kind != STORE;
    need(r.kind >= LOAD && r.kind <= STORE, "its kind");
    need(reads ? is_made(r.input) : r.input == -1, "its input");
    need(writes ? r.output >= 0 && r.output < count() && !made_[r.output] : r.output == -1, "its output");
    need(r.second == -1 || ((r.kind == CONV || r.kind == ADD) && is_made(r.second)), "its second input");
    switch (r.kind) {
      case LOAD: need(is_map(r.output) && values_[r.output].gate == -1, "its output"); break;
      case CONV: conv(r); break;
      case MAX_POOL: window(r), same_channels(r.input, r.output); break;
      case ADD: same_shape(r.input, r.output); if (r.second >= 0) same_shape(r.second, r.output); break;
      case SUBSAMPLE: subsample(r); break;
      case AVERAGE: need(is_map(r.input) && is_vector(r.output), "its shapes"), same_channels(r.input, r.output); break;
      case LINEAR: linear(r); break;
      case DECIDE: decide(r); break;
      case LOOK: features(r); break;
      case STORE: need(is_vector(r.input) && values_[r.input].gate == -1, "its input");
    }
    if (writes) made_[r.output] = 1;
  }

 private:
  static void need(bool fine, const char* what) {
    if (!fine) throw std::invalid_argument(std::string(what) + " is out of range");
  }
  int count() const { return static_cast<int>(values_.size()); }
  bool is_gate(int gate) const { return gate >= 0 && gate < static_cast<int>(widths_.size()); }
  bool is_made(int value) const { return value >= 0 && value < count() && made_[value]; }
  const BufferRecord& shape(int value) const { return buffers_[values_[value].buffer]; }
  bool is_vector(int value) const { return shape(value).stride == 0; }
  bool is_map(int value) const { return !is_vector(value); }
  void same_channels(int a, int b) const {
    need(values_[a].channels == values_[b].channels && values_[a].gate == values_[b].gate, "its number of channels");
  }
  void same_shape(int a, int b) const {
    same_channels(a, b);
    need(shape(a).height == shape(b).height && shape(a).width == shape(b).width, "its shape");
  }
  void arrays(const LayerRecord& r, long inputs, long outputs) const {
    need(r.weight && r.bias && inputs <= MAX_FLOATS / outputs, "its weights");
  }

  // Height and width of what a convolution or a pooling writes.
  void window(const LayerRecord& r) const {
    need(is_map(r.input) && is_map(r.output), "its shapes");
    const BufferRecord &in = shape(r.input), &out = shape(r.output);
    need(r.kernel >= 1 && r.kernel <= MAX_PIXELS && r.stride >= 1 && r.stride <= MAX_PIXELS, "its kernel or stride");
    need(r.padding >= 0 && (r.kind == CONV ? r.padding <= MAX_KERNEL / 2 : r.padding <= r.kernel / 2), "its padding");
    // As torch counts: floor((size + 2 padding - kernel) / stride) + 1.
    const long height = in.height + 2L * r.padding - r.kernel, width = in.width + 2L * r.padding - r.kernel;
    need(height >= 0 && width >= 0, "its kernel");
    need(out.height == height / r.stride + 1 && out.width == width / r.stride + 1, "its shape");
  }

  void conv(const LayerRecord& r) const {
    window(r);
    need(r.kernel <= MAX_KERNEL, "its kernel");
    if (r.second >= 0) need(is_map(r.second), "its second input"), same_shape(r.second, r.output);
    arrays(r, static_cast<long>(values_[r.input].channels) * r.kernel * r.kernel, values_[r.output].channels);
  }

  void subsample(const LayerRecord& r) const {
    need(is_map(r.input) && is_map(r.output) && r.stride >= 1 && r.stride <= MAX_PIXELS, "its stride");
    const BufferRecord &in = shape(r.input), &out = shape(r.output);
    need(out.height == (in.height - 1) / r.stride + 1 && out.width == (in.width - 1) / r.stride + 1, "its shape");
    need(r.offset >= 0 && r.offset <= MAX_CHANNELS, "its offset");
    need(values_[r.input].gate == -1 && values_[r.output].gate == -1, "its gate");
  }

  void linear(const LayerRecord& r) const {
    need(is_vector(r.output), "its output");
    const BufferRecord& in = shape(r.input);
    arrays(r, values_[r.input].channels * static_cast<long>(in.height) * in.width, values_[r.output].channels);
  }

  void features(const LayerRecord& r) const {
    need(is_map(r.input) && (r.average == 0 || r.average == 1) && r.grid >= 0 && r.grid <= 1024, "its features");
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
  const std::vector<int> widths_;
  std::vector<char> made_;
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
