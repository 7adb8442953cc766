// Running a plan: threads get groups of images, and each group runs through the segments.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "runner.h"
#include "threads.h"

namespace prunegym {

Workspace::Workspace(const Plan& plan, int images, int parts)
    : images(images), team(parts > 1 ? std::make_unique<Team>(parts) : nullptr), shared(plan.shared_size_),
      own(plan.image_size_ * images), planes(plan.planes_size_),
      chunk_planes(images > 1 ? plan.chunk_planes_size_ * images : 0), scratch(plan.scratch_size_ * parts),
      kept(static_cast<size_t>(images) * plan.list_size_), counts(static_cast<size_t>(images) * plan.widths_.size()) {
  fill_frames(plan);
}

// Frames of floats are zeros, as all memory is at first. No layer writes to a frame.
void Workspace::fill_frames(const Plan& plan) {
  for (int index = 0; index < static_cast<int>(plan.buffers_.size()); index++) {
    const Buffer& b = plan.buffers_[index];
    int32_t bits;
    std::memcpy(&bits, &b.fill, sizeof(bits));
    for (int image = 0; bits && image < (b.per_image ? images : 1); image++) {
      float* data = buffer(plan, index, image);
      std::fill(data, data + b.size, b.fill);
    }
  }
}

// The system often grants more memory than it has, and kills the process when the memory is used. So we check first, in
// double, which cannot overflow.
void Workspace::require_memory(const Plan& plan, int images, int parts, int workspaces) {
  const double floats = 1.0 * plan.shared_size_ + 1.0 * images * plan.image_size_ + plan.planes_size_ +
                        1.0 * images * (plan.chunk_planes_size_ + plan.list_size_) + 1.0 * parts * plan.scratch_size_;
  const double needed = workspaces * floats * sizeof(float);
  const double there = 1.0 * sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGE_SIZE);
  if (there <= 0 || needed <= there) return;
  char text[100];
  std::snprintf(text, sizeof(text), "%.1f GB of memory are needed and the machine has %.1f GB", needed / 1e9, there / 1e9);
  throw std::length_error(text);
}

float* Workspace::buffer(const Plan& plan, int index, int image) const {
  const Buffer& b = plan.buffers_[index];
  return b.per_image ? own.data() + plan.image_size_ * image + b.place : shared.data() + b.place;
}

float* Workspace::scratch_of(const Plan& plan, int part) const { return scratch.data() + plan.scratch_size_ * part; }

std::unique_ptr<Workspace> Plan::take_workspace(int images, int parts) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& free : free_workspaces_) {
      if (free->images < images || (free->team ? free->team->parts() : 1) != parts) continue;
      std::unique_ptr<Workspace> found = std::move(free);
      std::swap(free, free_workspaces_.back());
      free_workspaces_.pop_back();
      return found;
    }
  }
  Workspace::require_memory(*this, images, parts, 1);
  return std::make_unique<Workspace>(*this, images, parts);
}

void Plan::run_share(int first, int last, int parts, const Images* inputs, uint8_t* masks, float* outputs,
                     double* seconds) {
  auto space = take_workspace(std::min(GROUP, last - first), parts);
  for (int start = first; start < last; start += GROUP) {
    const size_t at = start;
    Runner(*this, *space, std::min(GROUP, last - start), inputs, start, masks + at * mask_size_,
           outputs + at * output_size_, seconds)
        .run();
  }
  std::lock_guard<std::mutex> lock(mutex_);
  free_workspaces_.push_back(std::move(space));
}

static void check_counts(int batch, int threads) {
  if (batch < 1 || batch > MAX_IMAGES) throw std::invalid_argument("the number of images is out of range");
  if (threads < 1 || threads > MAX_THREADS) throw std::invalid_argument("the number of threads is out of range");
}

// Each thread takes a share of the images, if that keeps at least half of the threads busy. Otherwise they share each
// image, which is slower for small layers: each thread's part is little work.
void Plan::run(int batch, const Images* inputs, uint8_t* masks, float* outputs, int threads, double* layer_seconds) {
  check_counts(batch, threads);
  if (batch < threads && (batch == 1 || 2 * batch < threads))
    return run_share(0, batch, threads, inputs, masks, outputs, layer_seconds);
  threads = std::min(threads, batch);
  on_threads(threads, [&](int thread) {
    const int first = static_cast<int>(static_cast<long>(batch) * thread / threads);
    const int last = static_cast<int>(static_cast<long>(batch) * (thread + 1) / threads);
    run_share(first, last, 1, inputs, masks, outputs, layer_seconds);
  });
}

Pass::Pass(const Plan& plan, int batch, int threads)
    : plan_(plan), batch_(batch), segment_(static_cast<int>(plan.segments_.size())) {
  check_counts(batch, threads);
  if (plan.inputs_ != 1) throw std::invalid_argument("a pass has one input");
  group_ = std::min(GROUP, (batch + threads - 1) / threads);
  Workspace::require_memory(plan, group_, 1, (batch + group_ - 1) / group_);
  no_masks_.resize(static_cast<size_t>(batch) * plan.mask_size_);
  for (int first = 0; first < batch; first += group_)
    groups_.push_back(std::make_unique<Workspace>(plan, std::min(group_, batch - first), 1));
}

void Pass::begin(const Images& images, float* features, int threads) {
  segment_ = 0;
  run(images, no_masks_.data(), features, nullptr, threads);
}

void Pass::advance(uint8_t* masks, float* features, float* outputs, int threads) {
  if (segment_ == static_cast<int>(plan_.segments_.size())) throw std::logic_error("the pass is over");
  run(Images{}, masks, features, outputs, threads);
}

void Pass::run(const Images& images, uint8_t* masks, float* features, float* outputs, int threads) {
  check_counts(batch_, threads);
  const int first_segment = segment_;
  const Layer* last = nullptr;
  do {
    last = &plan_.layers_[plan_.segments_[segment_++].last - 1];
  } while (last->record.kind != LOOK && segment_ < static_cast<int>(plan_.segments_.size()));
  const size_t size = last->record.kind == LOOK ? last->gate.features() : 0;
  std::atomic<int> next{0};
  const int groups = static_cast<int>(groups_.size());
  on_threads(std::min(threads, groups), [&](int) {
    for (int group = next++; group < groups; group = next++) {
      const size_t first = static_cast<size_t>(group) * group_;
      Runner(plan_, *groups_[group], std::min(group_, batch_ - group * group_), &images, group * group_,
             masks + first * plan_.mask_size_, outputs ? outputs + first * plan_.output_size_ : nullptr, nullptr,
             features ? features + first * size : nullptr)
          .run(first_segment, segment_);
    }
  });
}

}  // namespace prunegym
