// Passes over codes: the support of a gradient, sums, and rows to and from tensors of any layout.

// gradient = source where the code is not zero; ahead: vectors of both that are soon to be read.
static inline void support_row(const float* source, const float* code, float* gradient, int width, int64_t source_ahead,
                               int64_t code_ahead) {
  const int whole = width / kLanes * kLanes;
  for (int column = 0; column < whole; column += kLanes) {
    prefetch(source + column + source_ahead);
    prefetch(code + column + code_ahead);
    store(gradient + column, on_support(load(source + column), load(code + column)));
  }
  if (whole == width) return;
  const int left = width - whole;
  store_partial(gradient + whole, on_support(load_partial(source + whole, left), load_partial(code + whole, left)),
                left);
}

static void support(const SupportBlock& block, int begin, int end) {
  const SupportBlock b = block;
  const int width = b.shape.code_width;
  const bool plain = !b.divide && !b.divisor_map && !b.sums.sign;
  // Atoms outside: in a contiguous tensor the rows of one atom follow each other.
  for (int k = 0; k < b.shape.atoms; ++k) {
    const float divisor = b.divide && !b.divisor_map ? b.divisor[k] : 1;
    // Rows of an atom are short and lie far from the next one's: the processor does not foresee where to read on.
    const int later = k + 2 < b.shape.atoms ? 2 : 0;
    Vec signs = {}, values = {};
    for (int row = begin; row < end; ++row) {
      const float* source = b.source.row(row) + k * b.source.channel_stride;
      const float* code = b.code.row(row) + k * b.code.channel_stride;
      float* gradient = b.gradient.row(row) + k * b.gradient.channel_stride;
      if (plain) {
        support_row(source, code, gradient, width, later * b.source.channel_stride, later * b.code.channel_stride);
        continue;
      }
      const float* divisor_map = b.divisor_map ? b.divisor_map.row(row) + k * b.divisor_map.channel_stride : nullptr;
      for (int column = 0; column < width; column += kLanes) {
        const int left = width - column, lanes = left < kLanes ? left : kLanes;
        const Vec z = load_partial(code + column, lanes);
        Vec g = on_support(load_partial(source + column, lanes), z);
        if (divisor_map)
          g /= load_partial(divisor_map + column, lanes);
        else if (b.divide)
          g /= splat(divisor);
        store_partial(gradient + column, g, lanes);
        if (b.sums.sign) {
          // Lanes beyond the width hold zero codes, so that they add nothing.
          const Vec counted = on_support(g, z);
          signs += z < Vec{} ? -counted : counted;
          values += counted * z;
        }
      }
    }
    if (b.sums.sign) {
      b.sums.sign[k] += sum(signs);
      b.sums.value[k] += sum(values);
    }
  }
}

// to += scale * from, over code rows.
static void combine(const Plane& to, float scale, const Plane& from, const Shape& s, int begin, int end) {
  for (int row = begin; row < end; ++row) {
    for (int k = 0; k < s.atoms; ++k) {
      float* target = to.row(row) + k * to.channel_stride;
      const float* source = from.row(row) + k * from.channel_stride;
      for (int column = 0; column < s.code_width; column += kLanes) {
        const int left = s.code_width - column;
        store_partial(target + column, load(target + column) + scale * load(source + column),
                      left < kLanes ? left : kLanes);
      }
    }
  }
}

// Round to nearest, ties to even; NaN stays a quiet NaN.
static inline unsigned short narrow(float value) {
  unsigned bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
  return static_cast<unsigned short>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Blocks of kLanes channels x kLanes columns between channels_last memory and code rows.
static inline bool channels_are_adjacent(const Strided& t) {
  return t.element == Element::float32 && t.channel == 1 && t.column != 1;
}

// A code that lies as `from` does, if there is one, keeps what is read to its support.
static void read_codes(const Strided& from, const Strided& code, const Plane& to, const Shape& s, int begin, int end) {
  for (int row = begin; row < end; ++row) {
    float* target = to.row(row);
    int first = 0;  // Channels below it are done.
    if (channels_are_adjacent(from)) {
      const float* source = static_cast<const float*>(from.data) + row * from.row;
      const float* codes = code ? static_cast<const float*>(code.data) + row * code.row : source;
      for (; first + kLanes <= s.atoms; first += kLanes) {
        for (int column = 0; column < s.code_width; column += kLanes) {
          const int left = s.code_width - column, lanes = left < kLanes ? left : kLanes;
          Vec block[kLanes] = {};
          for (int lane = 0; lane < lanes; ++lane) {
            const int64_t at = (column + lane) * from.column + first;
            block[lane] = code ? on_support(load(source + at), load(codes + at)) : load(source + at);
          }
          transpose(block);
          for (int k = 0; k < kLanes; ++k)
            store_partial(target + (first + k) * to.channel_stride + column, block[k], lanes);
        }
      }
    }
    for (int k = first; k < s.atoms; ++k) {
      float* channel = target + k * to.channel_stride;
      const int64_t offset = k * from.channel + row * from.row;
      if (from.element == Element::bfloat16) {
        const auto* source = static_cast<const unsigned short*>(from.data) + offset;
        const auto* codes = code ? static_cast<const unsigned short*>(code.data) + offset : source;
        for (int w = 0; w < s.code_width; ++w) {
          const int64_t at = w * from.column;
          channel[w] = !code || widen(codes[at]) != 0 ? widen(source[at]) : 0;
        }
      } else {
        const float* source = static_cast<const float*>(from.data) + offset;
        const float* codes = code ? static_cast<const float*>(code.data) + offset : nullptr;
        if (codes)
          for (int w = 0; w < s.code_width; ++w) channel[w] = codes[w * from.column] != 0 ? source[w * from.column] : 0;
        else if (from.column == 1)
          __builtin_memcpy(channel, source, s.code_width * sizeof(float));
        else
          for (int w = 0; w < s.code_width; ++w) channel[w] = source[w * from.column];
      }
    }
  }
}

// Whole vectors of codes around the caches. Many lines in a row, each whole at once, go as fast as memory takes them.
static inline void stream_vectors(const float* from, float* to, int count) {
  for (int i = 0; i < count; i += kLanes) stream(to + i, load(from + i));
}

// Rows of codes to a tensor's, those of one atom after each other. `around` the caches go rows that are whole and
// aligned vectors, and rows that are whole lines together, packed first.
static void copy_codes(const Plane& from, const Plane& to, const Shape& s, int begin, int end, bool around) {
  constexpr int kPacked = 1024, kLine = 16;
  const int width = s.code_width, count = (end - begin) * width;
  const bool whole = width % kLanes == 0;
  const bool packs = around && !whole && count % kLine == 0 && count <= kPacked && to.row_stride == width;
  alignas(64) float packed[kPacked];
  for (int k = 0; k < s.atoms; ++k) {
    float* const first = to.row(begin) + k * to.channel_stride;
    const bool lines = packs && reinterpret_cast<uintptr_t>(first) % (4 * kLine) == 0;
    for (int row = begin; row < end; ++row) {
      const float* source = from.row(row) + k * from.channel_stride;
      float* const target = to.row(row) + k * to.channel_stride;
      if (around && whole)
        stream_vectors(source, target, width);
      else
        __builtin_memcpy(lines ? packed + (row - begin) * width : target, source, width * sizeof(float));
    }
    if (lines) stream_vectors(packed, first, count);
  }
}

// With `around` float32 channels that are adjacent go around the caches: every pixel's are whole and aligned vectors.
static void write_codes(const Plane& from, const Strided& to, const Shape& s, int begin, int end, bool around) {
  for (int row = begin; row < end; ++row) {
    const float* source = from.row(row);
    int first = 0;
    if (channels_are_adjacent(to)) {
      float* target = static_cast<float*>(to.data) + row * to.row;
      for (; first + kLanes <= s.atoms; first += kLanes) {
        for (int column = 0; column < s.code_width; column += kLanes) {
          const int left = s.code_width - column, lanes = left < kLanes ? left : kLanes;
          Vec block[kLanes];
          for (int k = 0; k < kLanes; ++k) block[k] = load(source + (first + k) * from.channel_stride + column);
          transpose(block);
          for (int lane = 0; lane < lanes; ++lane) {
            float* pixel = target + (column + lane) * to.column + first;
            if (around)
              stream(pixel, block[lane]);
            else
              store(pixel, block[lane]);
          }
        }
      }
    }
    for (int k = first; k < s.atoms; ++k) {
      const float* channel = source + k * from.channel_stride;
      const int64_t offset = k * to.channel + row * to.row;
      if (to.element == Element::bfloat16) {
        auto* target = static_cast<unsigned short*>(to.data) + offset;
        for (int w = 0; w < s.code_width; ++w) target[w * to.column] = narrow(channel[w]);
      } else {
        float* target = static_cast<float*>(to.data) + offset;
        if (to.column == 1)
          __builtin_memcpy(target, channel, s.code_width * sizeof(float));
        else
          for (int w = 0; w < s.code_width; ++w) target[w * to.column] = channel[w];
      }
    }
  }
}
