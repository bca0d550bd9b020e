// Rows of images, masks and gradients between tensors and scratch memory.

#include "workspace.h"

namespace csc {

namespace {

void write(const Strided& t, int64_t offset, float value) {
  if (t.element == Element::float32) {
    static_cast<float*>(t.data)[offset] = value;
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  static_cast<uint16_t*>(t.data)[offset] = nan ? 0x7fc0 : static_cast<uint16_t>(rounded);
}

// Every so many numbers; steps that are constants become vectors.
void copy_every(int64_t step, const float* from, float* to, int count) {
  if (step == 1) {
    std::memcpy(to, from, count * sizeof(float));
  } else if (step == 2) {
    for (int i = 0; i < count; ++i) to[i] = from[2 * i];
  } else {
    for (int i = 0; i < count; ++i) to[i] = from[i * step];
  }
}

// Calls with (channel, column, position in the phased row) for a whole row of an image.
template <typename Visit>
void each_pixel(const Shape& s, const Widths& widths, Visit visit) {
  for (int m = 0; m < s.channels; ++m) {
    for (int phase = 0; phase < s.stride_width; ++phase) {
      const int begin = s.phase_begin(phase), count = s.phase_count(phase);
      const int64_t row = static_cast<int64_t>(m * s.stride_width + phase) * widths.phase;
      for (int i = 0; i < count; ++i) visit(m, (begin + i) * s.stride_width + phase - s.left, row + begin + i);
    }
  }
}

}  // namespace

void read_image(const Strided& from, const Plane& to, const Shape& s, const Widths& widths) {
  if (from.element == Element::float32) {
    const int64_t step = s.stride_width * from.column;
    for (int h = 0; h < s.height; ++h) {
      const float* pixels = static_cast<const float*>(from.data) + h * from.row - s.left * from.column;
      for (int m = 0; m < s.channels; ++m) {
        for (int phase = 0; phase < s.stride_width; ++phase) {
          const int begin = s.phase_begin(phase);
          copy_every(step, pixels + m * from.channel + phase * from.column + begin * step,
                     to.row(h) + (m * s.stride_width + phase) * widths.phase + begin, s.phase_count(phase));
        }
      }
    }
    return;
  }
  for (int h = 0; h < s.height; ++h) {
    float* row = to.row(h);
    each_pixel(s, widths, [&](int m, int w, int64_t position) {
      row[position] = read(from, h * from.row + m * from.channel + w * from.column);
    });
  }
}

void write_image(const Plane& from, float scale, const Strided& to, const Shape& s, const Widths& widths) {
  for (int h = 0; h < s.height; ++h) {
    const float* row = from.row(h);
    each_pixel(s, widths, [&](int m, int w, int64_t position) {
      write(to, m * to.channel + h * to.row + w * to.column, scale * row[position]);
    });
  }
}

}  // namespace csc
