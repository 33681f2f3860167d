// The inner loops of column_sums.h for one set of instructions; included once for each, inside a namespace of its own.
//
// ADATP_WIDTH: floats in a vector register; ADATP_VECTORS: registers side by side that hold one panel of rows.
// ADATP_DOT_BF16: whether pairs of bfloat16 are multiplied as they are.
//
// A lane is a row: the maximum, the sum and the LSE of a row never leave their lane, and a key's elements are
// broadcast from where they lie. Accumulators for KEYS keys × ADATP_VECTORS registers stay in registers.

constexpr int WIDTH = ADATP_WIDTH, VECTORS = ADATP_VECTORS, ROWS = WIDTH * VECTORS, KEYS = 6;

typedef float Floats __attribute__((vector_size(WIDTH * 4)));
typedef int32_t Ints __attribute__((vector_size(WIDTH * 4)));

inline __attribute__((always_inline)) Floats load(const float* from) {
  Floats value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

inline __attribute__((always_inline)) void store(float* to, Floats value) { __builtin_memcpy(to, &value, sizeof(value)); }

inline __attribute__((always_inline)) Floats splat(float value) { return value - Floats{}; }

// 2^x with a relative error below 2e-7; 0 below 2^-126, infinity from 2^128 on, NaN for NaN.
inline __attribute__((always_inline)) Floats exp2(Floats x) {
  const Floats low = splat(-126.0f), high = splat(128.0f);
  const Ints tiny = x < low;
  x = tiny ? low : x;
  x = x > high ? high : x;
  const Floats magic = splat(12582912.0f);  // 1.5 · 2^23: a sum with it is rounded to an integer, in its last bits
  const Floats shifted = x + magic;
  const Floats r = x - (shifted - magic);  // [-0.5, 0.5]
  // The degree-6 polynomial with constant 1 of least relative error on that interval, 2e-9 before rounding.
  Floats p = splat(0.00015353362f);
  p = p * r + 0.0013398875f;
  p = p * r + 0.009618437f;
  p = p * r + 0.055503325f;
  p = p * r + 0.24022648f;
  p = p * r + 0.6931472f;
  p = p * r + 1.0f;
  Ints bits;
  __builtin_memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits - 0x4B400000 + 127) << 23;
  Floats power;
  __builtin_memcpy(&power, &bits, sizeof(power));
  p *= power;  // not by adding exponents, so that NaN stays NaN
  return tiny ? Floats{} : p;
}

// scores[k][v] = Σ_d panel[d][v] · keys[k][d], in float32. A function of its own: inlined, it would share the registers
// with what its caller keeps there, and accumulators would go to memory.
__attribute__((noinline)) void multiply(
    const float* panel, const float* const (&keys)[KEYS], int64_t dim, Floats (&scores)[KEYS][VECTORS]) {
  Floats sums[KEYS][VECTORS] = {};
  for (int64_t d = 0; d < dim; ++d, panel += ROWS) {
    Floats rows[VECTORS];
    for (int v = 0; v < VECTORS; ++v) rows[v] = load(panel + v * WIDTH);
    for (int k = 0; k < KEYS; ++k) {
      const Floats key = splat(keys[k][d]);
      for (int v = 0; v < VECTORS; ++v) sums[k][v] += rows[v] * key;
    }
  }
  for (int k = 0; k < KEYS; ++k)
    for (int v = 0; v < VECTORS; ++v) scores[k][v] = sums[k][v];
}

#if ADATP_DOT_BF16
// As above for pairs of bfloat16: panel [dim / 2][ROWS][2].
__attribute__((noinline)) void multiply(
    const uint16_t* panel, const uint16_t* const (&keys)[KEYS], int64_t dim, Floats (&scores)[KEYS][VECTORS]) {
  Floats sums[KEYS][VECTORS] = {};
  for (int64_t d = 0; d < dim; d += 2, panel += 2 * ROWS) {
    __m512i rows[VECTORS];
    for (int v = 0; v < VECTORS; ++v) rows[v] = _mm512_loadu_si512(panel + 2 * v * WIDTH);
    for (int k = 0; k < KEYS; ++k) {
      int32_t pair;
      __builtin_memcpy(&pair, keys[k] + d, 4);
      const __m512bh key = (__m512bh)_mm512_set1_epi32(pair);
      for (int v = 0; v < VECTORS; ++v)
        sums[k][v] = (Floats)_mm512_dpbf16_ps((__m512)sums[k][v], (__m512bh)rows[v], key);
    }
  }
  for (int k = 0; k < KEYS; ++k)
    for (int v = 0; v < VECTORS; ++v) scores[k][v] = sums[k][v];
}
#endif

// The scores of KEYS keys from number `first` on, masked and in base 2. Beyond the tile's end the last key is repeated.
template <class Element>
inline __attribute__((always_inline)) void scores_of(
    const KeyTile& tile, const Panel& panel, int64_t first, Floats (&scores)[KEYS][VECTORS]) {
  const Element* keys[KEYS];
  for (int k = 0; k < KEYS; ++k) {
    const int64_t key = first + k < tile.count ? first + k : tile.count - 1;
    keys[k] = static_cast<const Element*>(tile.keys) + key * tile.stride;
  }
  multiply(static_cast<const Element*>(panel.rows), keys, tile.dim, scores);
  for (int k = 0; k < KEYS; ++k) {
    const bool hidden = first + k >= tile.count || (tile.mask && !tile.mask[(first + k) * tile.mask_stride]);
    const int64_t column = tile.first + first + k;
    for (int v = 0; v < VECTORS; ++v) {
      scores[k][v] *= tile.scale_log2;
      if (hidden) {
        scores[k][v] = splat(-__builtin_inff());
      } else if (column > tile.origin) {
        Ints seen;
        __builtin_memcpy(&seen, panel.last_seen + v * WIDTH, sizeof(seen));
        scores[k][v] = int32_t(column - tile.origin) <= seen ? scores[k][v] : splat(-__builtin_inff());
      }
    }
  }
}

// Takes a tile of keys into the running maximum and sum, [ROWS] each and in base 2, of a panel's rows.
template <class Element>
void update_lse(const KeyTile& tile, const Panel& panel, float* maximum, float* sum) {
  alignas(64) float scores[TILE_KEYS * ROWS];
  Floats top[VECTORS], total[VECTORS], shift[VECTORS];
  for (int v = 0; v < VECTORS; ++v) top[v] = load(maximum + v * WIDTH);
  for (int64_t first = 0; first < tile.count; first += KEYS) {
    Floats block[KEYS][VECTORS];
    scores_of<Element>(tile, panel, first, block);
    for (int k = 0; k < KEYS; ++k)
      for (int v = 0; v < VECTORS; ++v) {
        top[v] = (block[k][v] <= top[v]) ? top[v] : block[k][v];
        store(scores + (first + k) * ROWS + v * WIDTH, block[k][v]);
      }
  }
  for (int v = 0; v < VECTORS; ++v) {
    // Of a row that has seen nothing yet the maximum is −∞, and +∞ is possible, too; ∞ − ∞ must not become NaN.
    shift[v] = ((top[v] == splat(-__builtin_inff())) | (top[v] == splat(__builtin_inff()))) ? Floats{} : top[v];
    total[v] = load(sum + v * WIDTH) * exp2(load(maximum + v * WIDTH) - shift[v]);
  }
  const int64_t padded = (tile.count + KEYS - 1) / KEYS * KEYS;
  for (int64_t k = 0; k < padded; ++k)
    for (int v = 0; v < VECTORS; ++v) total[v] += exp2(load(scores + k * ROWS + v * WIDTH) - shift[v]);
  for (int v = 0; v < VECTORS; ++v) {
    store(maximum + v * WIDTH, top[v]);
    store(sum + v * WIDTH, total[v]);
  }
}

// Adds to sums [TILE_KEYS][WIDTH], lane by lane, the probabilities of a tile's keys over a panel's rows.
template <class Element>
void add_probabilities(const KeyTile& tile, const Panel& panel, float* sums) {
  for (int64_t first = 0; first < tile.count; first += KEYS) {
    Floats block[KEYS][VECTORS];
    scores_of<Element>(tile, panel, first, block);
    for (int k = 0; k < KEYS; ++k) {
      Floats sum = load(sums + (first + k) * WIDTH);
      for (int v = 0; v < VECTORS; ++v) {
        const Floats lse = load(panel.lse + v * WIDTH);
        sum += lse == splat(-__builtin_inff()) ? Floats{} : exp2(block[k][v] - lse);
      }
      store(sums + (first + k) * WIDTH, sum);
    }
  }
}

// Keys of half precision as float32, [count][dim].
void widen(const void* keys, DType dtype, int64_t count, int64_t dim, int64_t key_stride, int64_t stride, float* wide) {
  for (int64_t k = 0; k < count; ++k, wide += dim) {
    const uint16_t* key = static_cast<const uint16_t*>(keys) + k * key_stride;
    if (dtype == DType::bfloat16)
      for (int64_t d = 0; d < dim; ++d) wide[d] = bfloat16_to_float(key[d * stride]);
    else if (stride == 1)
      for (int64_t d = 0; d < dim; ++d) wide[d] = float16_to_float(key[d]);
    else
      for (int64_t d = 0; d < dim; ++d) wide[d] = float16_to_float(key[d * stride]);
  }
}

inline const TileKernels& kernels() {
  static const TileKernels table = {
      ROWS, WIDTH, ADATP_DOT_BF16 != 0, widen,
      update_lse<float>, add_probabilities<float>,
#if ADATP_DOT_BF16
      update_lse<uint16_t>, add_probabilities<uint16_t>,
#else
      nullptr, nullptr,
#endif
  };
  return table;
}
