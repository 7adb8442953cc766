// A plan: a network as a flat list of layers and numbered values, with everything that does not depend on the images.
#pragma once
#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

#include "common.h"
#include "team.h"

namespace prunegym {

// The records that Python fills (shared_library.py has the same structures), as LayerRecord. All arrays are copied.
struct BufferRecord {
  int32_t channels, height, width, stride;  // stride 0: a vector. Of bytes, four channels count as one; of PAIRS, two
  int32_t zero;                             // what the frame is made of: a byte; or FLOATS, PAIRS
};
struct ValueRecord {
  int32_t buffer, channels, space;  // space -1: all channels are stored
  int32_t zero;                     // of bytes; or FLOATS, PAIRS
  float scale;
};
// A row of channels, each with its place in a mask, or -1 if it is always there.
struct SpaceRecord {
  int32_t channels;
  const int32_t* index;
};
struct NetworkRecord {
  int32_t buffer_count, value_count, gate_count, space_count, layer_count;
  const BufferRecord* buffers;
  const ValueRecord* values;
  const int32_t* widths;      // of the gates, which are the first spaces
  const SpaceRecord* spaces;  // those after them
  const LayerRecord* layers;
};

// Throws std::invalid_argument if the layer functions cannot take a record: an index is out of range, a value is read
// before it is written, or sizes do not fit or are too large. So wrong records are an error, not a crash.
void check_network(const NetworkRecord&);

// Floats, aligned to cache lines and zeroed, with OVERREAD more after the last. Large ones are in huge pages.
class Floats {
 public:
  explicit Floats(size_t count = 0);
  float* data() const { return data_.get(); }

 private:
  std::unique_ptr<float, void (*)(void*)> data_{nullptr, std::free};
};

struct Buffer {
  Map map;
  long size;       // floats for one image
  bool per_image;  // has values that are needed after their segment, or by a segment that runs by chunks
  long place;      // in the workspace: floats from the start of the shared part, or of an image's part
  float fill;      // what the frame is made of
};

struct Layer {
  LayerRecord record;
  Conv conv;
  Gate gate;
  std::vector<int32_t> bits;  // COMPENSATE: the mask bits of its rows
  int loaded;  // LOAD, and the CONVERT that alone reads what it loads: which of the inputs; else -1
  int fills;  // a space whose kept channels are counted before this layer, the first that writes some; -1: none
};

// The layout of images in memory: floats from one image, channel, row and column to the next. A copy to another layout by
// torch would use torch's threads, which then spin on the cores that are needed here.
struct Images {
  const float* data;
  long image, channel, row, column;

  Images from(long first) const { return Images{data + first * image, image, channel, row, column}; }
};

// Consecutive layers that run image by image. Or one convolution with many weights on a small map: in a batch it runs by
// chunks of output channels, and all images use a chunk while it is in the cache. A LOOK ends a segment.
struct Segment {
  int first, last;
  bool by_chunks;
};

// What computes the layers of a plan, by what they read. A conversion goes with what is not floats.
struct Variants {
  const Variant &floats, &bytes, &pairs;
};

class Plan;

// Memory and threads to run a group of images on one thread, or on `parts` threads that share each image.
struct Workspace {
  // Throws if the machine does not have enough memory for this many workspaces.
  static void require_memory(const Plan&, int images, int parts, int workspaces);
  Workspace(const Plan&, int images, int parts);
  float* buffer(const Plan&, int index, int image) const;
  void fill_frames(const Plan&);

  float* scratch_of(const Plan&, int part) const;

  int images;
  std::unique_ptr<Team> team;  // null for one thread
  Floats shared, own, planes, chunk_planes, scratch;
  std::vector<int> kept, counts;  // (images, channels of all spaces) and (images, spaces)
};

class Plan {
 public:
  Plan(const Variants&, const NetworkRecord&);

  // Masks (batch, mask_size) are read, and written if a gate has a policy. Outputs are (batch, outputs).
  // layer_seconds, if not null, has one number per layer, to which the layer's time is added.
  void run(int batch, const Images* inputs, uint8_t* masks, float* outputs, int threads, double* layer_seconds);

 private:
  friend struct Workspace;
  friend class Runner;
  friend class Pass;
  void place_layer(Layer&);
  void place_conv(Layer&);
  void place_packed_weights(Layer&);
  void place_ends(Layer&);
  void place_tiles(Packed&, int outputs, int taps);
  const Variant& variant_of(const LayerRecord& r) const {
    const int input = r.input >= 0 ? values_[r.input].zero : FLOATS;
    const int zero = r.kind == CONVERT && input == FLOATS ? values_[r.output].zero : input;
    return zero == FLOATS ? variants_.floats : zero == PAIRS ? variants_.pairs : variants_.bytes;
  }
  void place_features(Layer&);
  void place_gate(Layer&);
  void place_cells(Gate&);
  void join_loads();
  void cut_segments();
  void place_buffers();
  const float* keep(const float* data, size_t count);
  const float* keep_padded(const float* data, int rows, int columns);
  const float* keep_transposed(const float* data, int rows, int columns);
  const float* keep_transformed(const float* weight, int outputs, int inputs);
  const Map& map_of(int value) const { return buffers_[values_[value].buffer].map; }
  void run_share(int first, int last, int parts, const Images*, uint8_t* masks, float* outputs, double* seconds);
  std::unique_ptr<Workspace> take_workspace(int images, int parts);

  const Variants variants_;
  std::vector<Buffer> buffers_;
  std::vector<ValueRecord> values_;
  std::vector<int> widths_, starts_;  // channels of each space, and where their list begins; gates come first
  std::vector<std::vector<int32_t>> spaces_;  // of those after the gates: the mask bit of each channel, or -1
  std::vector<char> decided_;             // whether the gate has a policy in the plan
  std::vector<Layer> layers_;
  std::vector<Segment> segments_;
  std::vector<int> all_channels_;  // 0, 1, 2, ...: the kept list of values without a gate
  std::vector<std::vector<int32_t>> valid_, edges_;
  std::vector<Floats> constants_;
  int gates_ = 0, mask_size_ = 0, list_size_ = 0, inputs_ = 0;
  long output_size_ = 0;
  long shared_size_ = 0, image_size_ = 0, planes_size_ = 0, chunk_planes_size_ = 0, scratch_size_ = 0;

  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> free_workspaces_;
};

// One run of a plan that stops at each LOOK. It returns the features there, and continues when the masks are known. So an
// external agent decides gate by gate, and channels that it switches off are not computed.
class Pass {
 public:
  // threads: the usual number of threads of this pass.
  Pass(const Plan&, int batch, int threads);

  // Starts with new images and runs to the first LOOK. Its features are (batch, size of the LOOK).
  void begin(const Images&, float* features, int threads);
  // Runs to the next LOOK, or to the end, where the outputs (batch, outputs) are written. In the masks
  // (batch, mask_size), the bits of all gates before that point must be known.
  void advance(uint8_t* masks, float* features, float* outputs, int threads);

 private:
  void run(const Images&, uint8_t* masks, float* features, float* outputs, int threads);

  const Plan& plan_;
  int batch_, group_ = 0, segment_;
  std::vector<uint8_t> no_masks_;
  std::vector<std::unique_ptr<Workspace>> groups_;  // group_ images each
};

// The variants that were compiled and that this processor runs, best first; those for floats, bytes or bfloat16.
std::vector<const Variant*> runnable_variants();
std::vector<const Variant*> runnable_on_bytes();
std::vector<const Variant*> runnable_on_pairs();

}  // namespace prunegym
