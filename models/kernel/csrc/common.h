// What the plan interpreter (plan.cpp) and the layer functions (conv.h, layers.h) both know.
//
// The layer functions are compiled once for each vector width (lanes4.cpp, lanes8.cpp, lanes16.cpp). Each width has a
// table of pointers to them, `Variant`. The interpreter uses the widest one that the processor can run.
#pragma once
#include <cstdint>

namespace prunegym {

// Always inlined. Otherwise the linker could keep one copy for all widths, compiled for instructions that are missing.
#define COMMON inline __attribute__((always_inline))

constexpr int LINE = 16;        // floats in a cache line of 64 bytes, and the widest vector
constexpr int MAX_KERNEL = 7;   // largest side of a convolution kernel
constexpr int MAX_PADDING = 1024, MAX_DILATION = 1024;
constexpr int OVERREAD = 64;    // floats that must be readable after every buffer: vectors may extend past its end

// Positions within one channel of a map are ints. These limits keep them from overflowing (check.cpp refuses larger
// sizes). Products of channels, images or weights with anything else are longs.
static_assert(sizeof(long) == 8, "the kernel is written for 64 bits");
constexpr long MAX_PIXELS = 1L << 27;    // of one channel, frame included
constexpr long MAX_CHANNELS = 1L << 20;  // of a map, outputs of a linear layer, hidden units of a policy
constexpr long MAX_FLOATS = 1L << 56;    // in total: sums of a few such sizes still fit
constexpr int MAX_IMAGES = 1 << 24, MAX_THREADS = 1024;

// How the pixels of one channel lie in memory. A frame of zeros, one pixel wide, is around the picture. The zero to the
// right of a row is the same number as the zero to the left of the next row:
//
//     origin - stride ->  0 0 0 0 0         Pixel (y, x) is at first() + y * stride + x, and each of its eight
//     origin          ->  0 p p p p         neighbours at a fixed distance, also at the border. So a 3x3 convolution
//                         0 p p p p         runs over one flat row of numbers from `origin`. Its results in the zero
//                         0 0 0 0 0 0       columns are set back to zero when they are stored.
//
// Only kept channels are stored, in the order of their numbers ("compact"): channel number index[i] of a map is at
// i * channel. A vector (after pooling to one pixel) is a map of one pixel without a frame.
struct Map {
  int height, width;
  int stride;   // floats from a row to the next, at least width + 1
  int origin;   // the place of the zero left of row 0; a whole number of cache lines
  int channel;  // floats from a channel to the next; an odd number of lines, so that channels spread over the cache

  COMMON int first() const { return origin + 1; }
  COMMON bool is_vector() const { return origin < 0; }
  COMMON int pixels() const { return height * width; }
};

template <typename Int>
COMMON Int round_up(Int n, int unit) {
  return (n + unit - 1) / unit * unit;
}

COMMON Map make_map(int height, int width, int stride) {
  if (stride == 0) return Map{1, 1, 1, -1, 1};  // a vector: first() is 0
  int origin = round_up(stride + 1, LINE);
  int lines = (origin + round_up(height * stride, LINE) + stride + 1 + LINE - 1) / LINE + 1;
  return Map{height, width, stride, origin, (lines | 1) * LINE};
}

// The numbers of the kept channels of a map, in rising order.
struct Kept {
  int count;
  const int* index;
};

// In place of the byte that means zero.
constexpr int FLOATS = -1, PAIRS = -2;

// A map or vector of one image: channel i is the i-th of those that are kept.
struct View {
  const Map* map;
  int channels;  // kept or not
  Kept kept;
  float* data;   // null: there is no such input
  int zero;      // of bytes, which mean scale * (byte - zero); FLOATS or PAIRS (of bfloat16) for other numbers
  float scale;   // 1 but for bytes

  COMMON bool is_packed() const { return zero != FLOATS; }

  COMMON float* row(int channel, int y) const {
    return data + static_cast<long>(channel) * map->channel + map->first() + static_cast<long>(y) * map->stride;
  }
};

enum Kind : int32_t {
  LOAD, CONV, MAX_POOL, ADD, SUBSAMPLE, AVERAGE, LINEAR, DEPTHWISE, AVG_POOL, PLACE, SCALE, EXPAND, COMPENSATE,
  CONVERT, DECIDE, LOOK, STORE
};
// What is applied to each number at the end of a layer. Those up to RELU6 cut it off at two bounds.
enum Activation : int32_t { NO_ACTIVATION, RELU, RELU6, HARDSWISH, HARDSIGMOID, SIGMOID, SILU, GELU, ACTIVATIONS };

// A layer as Python describes it (shared_library.py has the same structure). All arrays are float32.
struct LayerRecord {
  int32_t kind, input, second, output;  // values; -1: none. second: the residual of CONV, the other operand of ADD, the
                                        // factors of SCALE, the biases of LINEAR (a vector; -1: its own)
  int32_t biases;                       // the biases of CONV, a vector; -1: its own
  int32_t kernel, kernel_width;         // height and width
  int32_t stride, padding, padding_width, dilation, groups, activation;
  int32_t offset;                          // SUBSAMPLE, PLACE: channel of the output that gets the first of the input
                                           // LOAD: which of the inputs; STORE: place among an image's outputs
  int32_t ceil;                            // of poolings: whether the last window may reach beyond the picture
  int32_t gate, average, grid, hidden;     // COMPENSATE: gate, or space, whose masked channels count; DECIDE;
                                           // LOOK has average, grid, mean, scale; AVG_POOL: average, whether
                                           // zeros of the padding count
  const float *weight, *bias;              // CONV, LINEAR, DEPTHWISE, PLACE (factors and summands, or null), COMPENSATE
                                           // (a row of summands for each channel, and what they are added to), and the
                                           // first linear layer of DECIDE (hidden, features)
  const float *weight2, *bias2, *mean, *scale;  // DECIDE. CONV on bytes: weights are whole numbers, and `scale` (out) is
                                                // the input's scale times that of the weights over the output's
};

// How a convolution reads its input. A grid is the sequence of positions that it computes, vector by vector.
enum class Path : int {
  in_place,    // straight from the input map; the grid is the output map from its origin, zero columns included
  copies,      // from shifted copies of the input, one for each column of the kernel; the grid has pixels only
  two_by_two,  // 2x2 maps: lanes are pairs of an output and an input pixel
  winograd,    // squares of four output pixels, by fewer multiplications (winograd.h)
};

// What a convolution on bytes or bfloat16 has besides (packed/conv.h).
struct Packed {
  const int8_t* weight;  // (out, taps, inputs): the inputs of a tap adjacent, with zeros up to tap_bytes; null: floats.
                         // Bytes, or bfloat16
  int tap_bytes;
  const float* factor;  // (out): from sums of products to units of the output
  int zero_in, zero_out;
  float scale_second;        // of the residual, over the output's
  float unit, inverse_unit;  // the output's scale
  float offset;              // what is added to all sums: the output's zero point, less the residual's
  float low, high;           // bounds of the output
  int pitch;         // of path copies: from one row of the grid to the next, at least the output's width
  bool by_rows;      // whether a block of rows is computed for all pixels before the next
  long copies_size;  // floats of the copies; after them are the panels
  // packed/together.h; null where images are always computed one by one. (out / 32, steps, 2, 16, 16, 4): of two tiles
  // the quads of inputs, of 16 outputs each. together_size: floats for each image.
  const int8_t* tiles;
  int steps;
  long together_size;
};

struct Conv {
  int height, width;  // of the kernel
  int stride, padding, padding_width, dilation, groups;
  int in_channels, out_channels;
  const float* weight;  // (out, in / groups, height, width) as in torch; path winograd: (16, out, in), transformed
  const float* bias;    // (out)
  int activation;
  Map in, out, residual;
  // Chosen by Variant::plan_conv:
  Path path;
  int vectors;                         // in the grid; path winograd: of squares in the largest band
  int bands;                           // path winograd: parts that the rows of squares are cut into
  int plane;                           // floats in one shifted copy
  long input_channel;                  // floats from an input channel to the next, as the tiles read it
  long planes_size, scratch_size;      // floats that prepare_conv writes, at most, and of scratch
  long taps[MAX_KERNEL * MAX_KERNEL];  // from a grid position to the input under each number of the kernel
  const int32_t* valid;                // path in_place: -1 at pixels of the grid, 0 at zero columns and past its end
  float fill;                          // what the frame of the input is made of, where it is copied
  Packed packed;

  COMMON int tap_count() const { return height * width; }
  COMMON int group_inputs() const { return in_channels / groups; }
  COMMON int group_outputs() const { return out_channels / groups; }
  // Number of parts for threads to share: kept output channels, times the number of bands if there are any. Of packs:
  // fours of channels.
  COMMON int shares(int kept) const {
    if (packed.weight) return (kept + 3) / 4;
    return path == Path::winograd ? bands * kept : kept;
  }
  COMMON int reach() const { return (height - 1) * dilation; }  // rows from the first of the kernel to the last
  COMMON int phases() const { return stride <= reach() ? stride : reach() + 1; }  // row sets of the copies
};

// One convolution on one image, or the shares first..last - 1 of it. A share is an output channel, as a place in
// `out_kept`; with bands, band by band.
struct ConvCall {
  Kept in_kept, out_kept;
  const float* input;     // what Variant::prepare_conv returned
  const float* bias;      // (out), by the number of the channel
  const float* residual;  // map to add before the ReLU, or null; may be the output map itself
  float* output;
  float* scratch;
  int first, last;
  long skipped;   // weights before those of the group's first input channel, in each row
  bool prefetch;  // whether weights are outside of the caches: fetch those of the next rows while computing these
};

// A gate's policy: features, standardised and clipped -> linear -> ReLU -> linear -> kept where the logit is above 0.
struct Gate {
  Map in;
  int in_channels, width;
  int average, grid;         // whether channel averages are features; side of the coarse grid, 0 for none
  const int32_t* edges;      // of each row of cells the first pixel and the one after the last, then of each column
  bool halves;               // whether all cells are of one size, their width a power of two
  float cell_share;         // then: 1 / pixels of a cell
  int hidden, hidden_padded, width_padded;
  const float *mean, *scale;  // (features): subtracted, then multiplied (scale = 1 / standard deviation)
  const float *weight1;       // (features, hidden_padded)
  const float *start;         // (hidden_padded): bias
  const float *start_absent;  // the same, plus what the features of absent channels (zero pixels) contribute
  const float *absent;        // (features): standardised features of absent channels
  const float *weight2;       // (hidden, width_padded)
  const float *bias2;         // (width_padded)

  COMMON int features() const { return in_channels * (average + grid * grid); }
};

typedef void (*LayerFunction)(const LayerRecord&, const View& in, const View& second, const View& out, float* scratch);

// The layer functions, compiled for one vector width.
struct Variant {
  const char* name;
  int lanes;
  void (*plan_conv)(Conv&, bool has_residual);
  const float* (*prepare_conv)(const Conv&, Kept, const float* map, float* planes);
  void (*conv)(const Conv&, const ConvCall&);
  // Several images at once, each with its call; null where it is not known. Returns false if one by one is faster.
  bool (*conv_together)(const Conv&, const ConvCall*, int count, float* planes);
  LayerFunction layers[DECIDE];  // by kind; null for those that it has not, as LOAD and CONV
  int (*decide)(const Gate&, const View& in, int* kept, float* scratch);
  void (*look)(const Gate&, const View& in, float* features, float* scratch);
};

}  // namespace prunegym
