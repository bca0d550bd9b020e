// The dictionary's gradient from tiles; see tiles.h: sums over tiles of what the image and what the codes combine to.

// Atoms at once: registers hold their sums, 4 M of each, its codes in the even and the odd columns, and two pixels.
template <int M>
constexpr int kTileSums = (kRegisters - 2) / (4 * M + 2);

// A pair of code rows, and a row kind of what the image combines to.
struct TileLine {
  const float *pixels, *code, *other;
};

// What a vector of tiles reads of a code row is one cache line, or two.
static inline void prefetch_tile(const float* codes) {
  prefetch(codes);
  if (kLanes == 16) prefetch(codes + kLanes);
}

// Adds one row kind of A atoms.
template <int A, int M, Codes Kind>
static __attribute__((noinline)) void tile_products(const CorrelationBlock& b, const TileLine* line,
                                                    const TileLine* end, int atom, double* to) {
  const int64_t stride = b.code.channel_stride, ahead = A * stride;
  const int tiles = tiles_of(b.shape);
  Vec sums[4 * M][A];
#pragma GCC unroll 16
  for (int t = 0; t < 4 * M; ++t)
#pragma GCC unroll 16
    for (int a = 0; a < A; ++a) sums[t][a] = Vec{};
  for (; line < end; ++line) {
    const float *code = line->code + atom * stride, *other = line->other + atom * stride, *pixels = line->pixels;
    for (int tile = 0; tile < tiles; ++tile) {
      Vec even[A], odd[A];
#pragma GCC unroll 16
      for (int a = 0; a < A; ++a) {
        const float *upper = code + a * stride, *lower = other + a * stride;
        Vec low = codes_of<Kind>(upper, lower, 1), high = codes_of<Kind>(upper + kLanes, lower + kLanes, 1);
        prefetch_tile(upper + ahead);
        if (Kind != Codes::first) prefetch_tile(lower + ahead);
        hold(low);
        hold(high);
        even[a] = even_columns(low, high);
        odd[a] = odd_columns(low, high);
        hold(even[a]);
        hold(odd[a]);
      }
      const auto add_half = [&](int half) __attribute__((always_inline)) {
#pragma GCC unroll 16
        for (int product = 2 * M * half; product < 2 * M * (half + 1); ++product) {
          Vec x = load(pixels + product * kLanes);
          if (A > 1) hold(x);  // Else it is read by its product.
#pragma GCC unroll 16
          for (int a = 0; a < A; ++a) sums[product][a] += (product % 2 ? odd[a] : even[a]) * x;
        }
      };
      add_half(1);
#pragma GCC unroll 16
      for (int a = 0; a < A; ++a) {
        add_and_subtract(even[a], odd[a]);
        hold(even[a]);
        hold(odd[a]);
      }
      add_half(0);
      code += kTileColumns;
      other += kTileColumns;
      pixels += 16 * M * kLanes;
    }
  }
  add_lanes(sums, to + int64_t{4} * M * atom, 4 * M);
}

// One row kind of all atoms: what the image combines to stays in the first-level cache, and codes are asked for ahead.
template <int A, int M, Codes Kind>
static void tile_kind(const CorrelationBlock& b, const TileLine* lines, int count, double* to) {
  int atom = 0;
  for (; atom + A <= b.shape.atoms; atom += A) tile_products<A, M, Kind>(b, lines, lines + count, atom, to);
  for (; atom < b.shape.atoms; ++atom) tile_products<1, M, Kind>(b, lines, lines + count, atom, to);
}

template <int A, int M>
static void tile_kinds(const CorrelationBlock& b, const TileLine (&lines)[4][kPairsToCorrelate], int count) {
  const int64_t size = int64_t{4} * M * b.shape.atoms;
  tile_kind<A, M, Codes::sum>(b, lines[0], count, b.sums);
  tile_kind<A, M, Codes::difference>(b, lines[1], count, b.sums + size);
  tile_kind<A, M, Codes::first>(b, lines[2], count, b.sums + 2 * size);
  tile_kind<A, M, Codes::first>(b, lines[3], count, b.sums + 3 * size);
}

// Adds the positions of code rows [begin, end).
static void correlation_tiles(const CorrelationBlock& b, int begin, int end) {
  const int64_t kind = 4 * b.shape.channels * kLanes, size = 4 * kind * tiles_of(b.shape);
  for (; begin < end; begin += 2 * b.room) {
    const int stop = begin + 2 * b.room < end ? begin + 2 * b.room : end;
    TileLine lines[4][kPairsToCorrelate];
    int count = 0;
    for (int row = begin; row < stop; row += 2, ++count) {
      float* pixels = b.combined + count * size;
      combine_tiles(b, row, pixels);
      const float *code = b.code.row(row), *other = row + 1 < stop ? b.code.row(row + 1) : b.zeros;
      for (int i = 0; i < 4; ++i, pixels += kind)
        lines[i][count] = i == 3 ? TileLine{pixels, other, code} : TileLine{pixels, code, other};
    }
    switch (b.shape.channels) {
      case 1:
        tile_kinds<kTileSums<1>, 1>(b, lines, count);
        break;
      case 2:
        tile_kinds<kTileSums<2>, 2>(b, lines, count);
        break;
      default:
        tile_kinds<kTileSums<3>, 3>(b, lines, count);
    }
  }
}
