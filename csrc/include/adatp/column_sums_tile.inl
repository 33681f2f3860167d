// The inner loops of attention_tiles.h for one set of instructions; included once for each, in a namespace of its own.
//
// ADATP_WIDTH: floats in a vector register; ADATP_KEYS: keys that are multiplied at once with a panel of two registers.
// ADATP_DOT_BF16: whether pairs of bfloat16 are multiplied as they are.
//
// A lane is a row: the maximum, the sum and the LSE of a row never leave their lane, and a key's elements are
// broadcast from where they lie. The ADATP_KEYS × 2 accumulators of a product stay in registers.

constexpr int WIDTH = ADATP_WIDTH, VECTORS = 2, ROWS = WIDTH * VECTORS, KEYS = ADATP_KEYS;
static_assert(TILE_KEYS % KEYS == 0 && TILE_KEYS % WIDTH == 0 && ROWS <= MOST_ROWS && WIDTH <= MOST_LANES);

typedef float Floats __attribute__((vector_size(WIDTH * 4)));
typedef int32_t Ints __attribute__((vector_size(WIDTH * 4)));
#define ADATP_INLINE inline __attribute__((always_inline))

ADATP_INLINE Floats load(const float* from) {
  Floats value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

ADATP_INLINE void store(float* to, Floats value) { __builtin_memcpy(to, &value, sizeof(value)); }

ADATP_INLINE Floats splat(float value) { return value - Floats{}; }

// NaN in `a` is lost; in `b` it stays. GCC has to be told the instructions; without a mask it warns of its own headers.
ADATP_INLINE Floats larger(Floats a, Floats b) {
#if ADATP_WIDTH == 16
  return (Floats)_mm512_maskz_max_ps(0xFFFF, (__m512)a, (__m512)b);
#elif ADATP_WIDTH == 8
  return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

ADATP_INLINE Floats smaller(Floats a, Floats b) {
#if ADATP_WIDTH == 16
  return (Floats)_mm512_maskz_min_ps(0xFFFF, (__m512)a, (__m512)b);
#elif ADATP_WIDTH == 8
  return (Floats)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

// `value` where `lanes` is −1, and 0 where it is 0, whatever the value.
ADATP_INLINE Floats only(Ints lanes, Floats value) {
  Ints bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  bits &= lanes;
  __builtin_memcpy(&value, &bits, sizeof(bits));
  return value;
}

// 2^r for r in [-0.5, 0.5]: the degree-5 polynomial with constant 1 of least relative error there, 9e-8 before rounding.
ADATP_INLINE Floats exp2_of_fraction(Floats r) {
  Floats p = splat(0.0013264727f);
  p = p * r + 0.009671513f;
  p = p * r + 0.055507336f;
  p = p * r + 0.24022242f;
  p = p * r + 0.693147f;
  return p * r + 1.0f;
}

// 2^x with a relative error below 2e-7; 0 below 2^-127, or only below 2^-150, infinity from 2^128 on, NaN for NaN.
ADATP_INLINE Floats exp2(Floats x) {
#if ADATP_WIDTH == 16
  // On Zen 4 these and the subtraction take no time of the units that multiply, which are what everybody waits for.
  const Floats r = (Floats)_mm512_maskz_reduce_ps(0xFFFF, (__m512)x, 0);  // x − its nearest integer; 0 for ±∞
  return (Floats)_mm512_maskz_scalef_ps(0xFFFF, (__m512)exp2_of_fraction(r), (__m512)(x - r));
#else
  x = smaller(splat(128.0f), larger(splat(-127.0f), x));
  // 1.5 · 2^23 and the exponent of 1: a sum with it is rounded to an integer, and ends in the bits of the exponent.
  const Floats magic = splat(12582912.0f + 127.0f);
  const Floats shifted = x + magic;
  Ints bits;
  __builtin_memcpy(&bits, &shifted, sizeof(bits));
  bits <<= 23;  // 0 for 2^-127, and infinity for 2^128
  Floats power;
  __builtin_memcpy(&power, &bits, sizeof(power));
  return exp2_of_fraction(x - (shifted - magic)) * power;  // not by adding exponents, so that NaN stays NaN
#endif
}

// What is subtracted from scores of which `top` is the largest: it, but finite, so that ∞ − ∞ does not become NaN.
ADATP_INLINE Floats shift_for(Floats top) {
  return smaller(splat(__FLT_MAX__), larger(splat(-__FLT_MAX__), top));
}

// COUNT keys from one element on, by the first of every three, a stride in bytes apart: few enough registers to address
// all of them at once.
template <int COUNT>
struct Keys {
  Keys(const void* keys, int64_t stride) : stride(stride) {
#pragma GCC unroll 4
    for (int i = 0; i < THIRDS; ++i) {
      thirds[i] = static_cast<const char*>(keys) + 3 * i * stride;
      // The compiler shall not see through this, or it computes, and spills, an offset for every key.
      asm("" : "+r"(thirds[i]));
    }
  }

  ADATP_INLINE const char* operator[](int k) const { return thirds[k / 3] + k % 3 * stride; }

  // On to the next element.
  ADATP_INLINE void advance(int64_t bytes) {
#pragma GCC unroll 4
    for (int i = 0; i < THIRDS; ++i) thirds[i] += bytes;
  }

  // Asks for a cache line of each of the keys that come next, while these are multiplied.
  ADATP_INLINE void prefetch_next() const {
#pragma GCC unroll 12
    for (int k = 0; k < COUNT; ++k) __builtin_prefetch((*this)[k] + COUNT * stride);
  }

  static constexpr int THIRDS = (COUNT + 2) / 3;
  const char* thirds[THIRDS];
  const int64_t stride;
};

// sums[k] += panel[d] · keys[k][d], for one d and COUNT keys.
template <int COUNT>
ADATP_INLINE void multiply_add(const float* panel, const Keys<COUNT>& keys, Floats (&sums)[COUNT][VECTORS]) {
  Floats rows[VECTORS];
  for (int v = 0; v < VECTORS; ++v) rows[v] = load(panel + v * WIDTH);
#pragma GCC unroll 12
  for (int k = 0; k < COUNT; ++k) {
    float element;
    __builtin_memcpy(&element, keys[k], 4);
    const Floats key = splat(element);
    for (int v = 0; v < VECTORS; ++v) sums[k][v] += rows[v] * key;
  }
}

#if ADATP_DOT_BF16
// As above for a pair of bfloat16: panel [ROWS][2].
template <int COUNT>
ADATP_INLINE void multiply_add(const uint16_t* panel, const Keys<COUNT>& keys, Floats (&sums)[COUNT][VECTORS]) {
  __m512i rows[VECTORS];
  for (int v = 0; v < VECTORS; ++v) rows[v] = _mm512_loadu_si512(panel + 2 * v * WIDTH);
#pragma GCC unroll 12
  for (int k = 0; k < COUNT; ++k) {
    int32_t pair;
    __builtin_memcpy(&pair, keys[k], 4);
    const __m512bh key = (__m512bh)_mm512_set1_epi32(pair);
    for (int v = 0; v < VECTORS; ++v)
      sums[k][v] = (Floats)_mm512_dpbf16_ps((__m512)sums[k][v], (__m512bh)rows[v], key);
  }
}
#endif

// scores[k][row] = scale · Σ_d panel[d][row] · keys[k][d], in float32, for COUNT keys. `most` [ROWS], unless it is null,
// is the largest of each row so far.
template <int COUNT, class Element>
__attribute__((noinline)) void multiply(
    const Element* panel, const Element* first, int64_t stride, int64_t dim, float scale, float* scores, float* most) {
  constexpr int64_t STEP = 4 / sizeof(Element), LINE = 64 / sizeof(Element);
  Keys<COUNT> keys(first, stride * int64_t(sizeof(Element)));
  Floats sums[COUNT][VECTORS] = {};
  for (int64_t left = dim; left > 0; left -= LINE) {
    keys.prefetch_next();
    const Element* const end = panel + (left < LINE ? left : LINE) * ROWS;
    for (; panel != end; panel += STEP * ROWS, keys.advance(4)) multiply_add(panel, keys, sums);
  }
#pragma GCC unroll 12
  for (int k = 0; k < COUNT; ++k)
    for (int v = 0; v < VECTORS; ++v) {
      sums[k][v] *= scale;
      store(scores + k * ROWS + v * WIDTH, sums[k][v]);
    }
  if (!most) return;
  for (int v = 0; v < VECTORS; ++v) {
    Floats own = load(most + v * WIDTH);
#pragma GCC unroll 12
    for (int k = 0; k < COUNT; ++k) own = larger(sums[k][v], own);
    store(most + v * WIDTH, own);
  }
}

// The scores [count][ROWS] of a tile's keys, in base 2; −∞ where a row doesn't see a key. `most` is as above.
template <class Element>
ADATP_INLINE void scores_of(const KeyTile& tile, const Panel& panel, float* scores, float* most) {
  const Element *rows = static_cast<const Element*>(panel.rows), *keys = static_cast<const Element*>(tile.keys);
  const bool all_seen = !tile.mask && tile.first + tile.count <= tile.origin + 1;
  float* const most_seen = all_seen ? most : nullptr;
  const int64_t stride = tile.stride, dim = tile.dim;
  int64_t k = 0;
  for (; k + KEYS <= tile.count; k += KEYS)
    multiply<KEYS>(rows, keys + k * stride, stride, dim, tile.scale_log2, scores + k * ROWS, most_seen);
  for (; k < tile.count; ++k)
    multiply<1>(rows, keys + k * stride, stride, dim, tile.scale_log2, scores + k * ROWS, most_seen);
  if (all_seen) return;
  for (k = 0; k < tile.count; ++k) {
    const bool hidden = tile.mask && !tile.mask[k * tile.mask_stride];
    const int64_t column = tile.first + k;
    if (!hidden && column <= tile.origin) continue;
    for (int v = 0; v < VECTORS; ++v) {
      float* own = scores + k * ROWS + v * WIDTH;
      Ints seen;
      __builtin_memcpy(&seen, panel.last_seen + v * WIDTH, sizeof(seen));
      const Ints visible = hidden ? Ints{} : Ints(int32_t(column - tile.origin) <= seen);
      store(own, visible ? load(own) : splat(-__builtin_inff()));
    }
  }
  for (int v = 0; most && v < VECTORS; ++v) {
    Floats own = load(most + v * WIDTH);
    for (k = 0; k < tile.count; ++k) own = larger(load(scores + k * ROWS + v * WIDTH), own);
    store(most + v * WIDTH, own);
  }
}

// Takes a tile of keys into the running maximum and sum, [ROWS] each and in base 2, of a panel's rows. Leaves behind
// what was summed up, numerators[k][row] = 2^(score − shift[row]), and the shift, which is that maximum made finite.
template <class Element>
void update_lse(const KeyTile& tile, const Panel& panel, float* maximum, float* sum, float* numerators, float* shift) {
  Floats total[VECTORS], shifts[VECTORS];
  for (int v = 0; v < VECTORS; ++v) shifts[v] = shift_for(load(maximum + v * WIDTH));
  scores_of<Element>(tile, panel, numerators, maximum);
  for (int v = 0; v < VECTORS; ++v) {
    const Floats before = shifts[v];
    shifts[v] = shift_for(load(maximum + v * WIDTH));
    total[v] = load(sum + v * WIDTH) * exp2(before - shifts[v]);
  }
  for (int64_t k = 0; k < tile.count; ++k)
    for (int v = 0; v < VECTORS; ++v) {
      float* own = numerators + k * ROWS + v * WIDTH;
      const Floats numerator = exp2(load(own) - shifts[v]);
      total[v] += numerator;
      store(own, numerator);
    }
  for (int v = 0; v < VECTORS; ++v) {
    store(sum + v * WIDTH, total[v]);
    store(shift + v * WIDTH, shifts[v]);
  }
}

// The base-2 LSE of a panel's rows from maxima and sums of `parts` parts of the keys, a part every `stride` floats.
void lse_of_parts(const float* maxima, const float* sums, int64_t parts, int64_t stride, float* lse) {
  for (int v = 0; v < VECTORS; ++v, maxima += WIDTH, sums += WIDTH, lse += WIDTH) {
    Floats top = splat(-__builtin_inff()), total = {};
    for (int64_t part = 0; part < parts; ++part) top = larger(load(maxima + part * stride), top);
    const Floats shift = shift_for(top);
    for (int64_t part = 0; part < parts; ++part)
      total += load(sums + part * stride) * exp2(shift_for(load(maxima + part * stride)) - shift);
    for (int lane = 0; lane < WIDTH; ++lane) lse[lane] = shift[lane] + __builtin_log2f(total[lane]);
  }
}

// Adds to lanes [count][WIDTH] the probabilities of a tile's keys over a panel's rows; `lse` [ROWS] is in base 2, and
// −∞ for a row that does not count.
template <class Element>
void add_probabilities(const KeyTile& tile, const Panel& panel, const float* lse, float* lanes) {
  alignas(64) float scores[TILE_KEYS * ROWS];
  scores_of<Element>(tile, panel, scores, nullptr);
  Floats own[VECTORS];
  Ints counts[VECTORS];
  for (int v = 0; v < VECTORS; ++v) {
    own[v] = load(lse + v * WIDTH);
    counts[v] = own[v] != splat(-__builtin_inff());
  }
  for (int64_t k = 0; k < tile.count; ++k) {
    Floats sum = load(lanes + k * WIDTH);
    for (int v = 0; v < VECTORS; ++v) sum += only(counts[v], exp2(load(scores + k * ROWS + v * WIDTH) - own[v]));
    store(lanes + k * WIDTH, sum);
  }
}

// Of vectors that hold WIDTH / SIZE keys, SIZE lanes each, one that holds twice as many with half the lanes.
template <int SIZE, size_t... LANE>
ADATP_INLINE Floats fold(Floats first, Floats second, std::index_sequence<LANE...>) {
  constexpr auto source = [](size_t lane) { return lane / (SIZE / 2) * SIZE + lane % (SIZE / 2); };
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(first, second, source(LANE)...) +
         __builtin_shufflevector(first, second, source(LANE) + SIZE / 2 ...);
#else  // GCC before 12
  return __builtin_shuffle(first, second, Ints{int32_t(source(LANE))...}) +
         __builtin_shuffle(first, second, Ints{int32_t(source(LANE) + SIZE / 2)...});
#endif
}

// The sums of COUNT vectors' lanes, one after the other, WIDTH / COUNT lanes each.
template <int COUNT>
ADATP_INLINE Floats folded(const Floats* vectors) {
  if constexpr (COUNT == 1)
    return vectors[0];
  else
    return fold<2 * WIDTH / COUNT>(folded<COUNT / 2>(vectors), folded<COUNT / 2>(vectors + COUNT / 2),
                                   std::make_index_sequence<WIDTH>());
}

// sums[k] = the sum of lanes [count][WIDTH], which may be read, and the sums written, up to the next multiple of WIDTH.
void sum_lanes(const float* lanes, int64_t count, float* sums) {
  for (int64_t first = 0; first < count; first += WIDTH) {
    Floats own[WIDTH];
    for (int k = 0; k < WIDTH; ++k) own[k] = load(lanes + (first + k) * WIDTH);
    store(sums + first, folded<WIDTH>(own));
  }
}

// sums[k] = Σ_row numerators[k][row] · 2^(shift[row] − lse[row]): the probabilities of keys over a panel's rows. Up to
// the next multiple of WIDTH numerators may be read, and sums written. `lse` is as for add_probabilities.
void sum_numerators(const float* numerators, int64_t count, const float* shift, const float* lse, float* sums) {
  Floats weights[VECTORS];
  Ints counts[VECTORS];
  for (int v = 0; v < VECTORS; ++v) {
    const Floats own = load(lse + v * WIDTH);
    counts[v] = own != splat(-__builtin_inff());
    weights[v] = exp2(load(shift + v * WIDTH) - own);
  }
  for (int64_t first = 0; first < count; first += WIDTH) {
    Floats own[WIDTH];
    for (int k = 0; k < WIDTH; ++k) {
      own[k] = Floats{};
      for (int v = 0; v < VECTORS; ++v)
        own[k] += only(counts[v], load(numerators + (first + k) * ROWS + v * WIDTH) * weights[v]);
    }
    store(sums + first, folded<WIDTH>(own));
  }
}

// Keys of half precision as float32, [count][dim].
void widen(const void* keys, DType dtype, int64_t count, int64_t dim, int64_t key_stride, int64_t stride, float* wide) {
  for (int64_t k = 0; k < count; ++k, wide += dim) {
    const uint16_t* key = static_cast<const uint16_t*>(keys) + k * key_stride;
    int64_t d = 0;
    if (dtype == DType::bfloat16) {
      for (; d < dim; ++d) wide[d] = bfloat16_to_float(key[d * stride]);
      continue;
    }
#if ADATP_WIDTH == 16
    if (stride == 1)
      for (; d + WIDTH <= dim; d += WIDTH)
        store(wide + d, (Floats)_mm512_maskz_cvtph_ps(0xFFFF, _mm256_loadu_si256((const __m256i*)(key + d))));
#endif
    if (stride == 1)
      for (; d < dim; ++d) wide[d] = float16_to_float(key[d]);
    else
      for (; d < dim; ++d) wide[d] = float16_to_float(key[d * stride]);
  }
}

template <class Element>
TileKernels kernels() {
  return {ROWS, sizeof(Element) == 2, update_lse<Element>, lse_of_parts, add_probabilities<Element>, sum_lanes,
          sum_numerators, widen};
}
#undef ADATP_INLINE
