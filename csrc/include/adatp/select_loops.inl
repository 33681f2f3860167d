// The loops of select.h over whole segments, for one set of instructions; included once for each, inside a namespace of
// its own. Plain loops, which the compiler turns into vectors as wide as the instructions allow.

// A key for every score, see `Key` in select.h; the columns are numbered on from `column`.
template <class Score>
void keys_of(const Score* scores, int64_t stride, const Score* prior, int64_t prior_stride, int64_t column, int64_t count,
             Key<Score>* keys) {
  using Order = OrderOf<Score>;
  constexpr Order SIGN = Order(1) << (8 * sizeof(Order) - 1);
  const auto key_of = [=](Score score, int64_t i) {
    const Score value = score == 0 ? Score(0) : score;  // −0 is +0
    Order bits;
    __builtin_memcpy(&bits, &value, sizeof(bits));
    const Order order = score != score ? Order(1) : bits & SIGN ? Order(~bits) : Order(bits | SIGN);  // −∞ is more than 1
    return Key<Score>(order) << 32 | uint32_t(~uint32_t(column + i));
  };
  if (prior)
    for (int64_t i = 0; i < count; ++i) keys[i] = key_of(scores[i * stride] * prior[i * prior_stride], i);
  else if (stride == 1)
    for (int64_t i = 0; i < count; ++i) keys[i] = key_of(scores[i], i);
  else
    for (int64_t i = 0; i < count; ++i) keys[i] = key_of(scores[i * stride], i);
}

// How many of `keys` are at least `bound`. Lanes by name, so that there are enough sums to add to at once.
template <class Number>
int64_t count_at_least(const Number* keys, int64_t count, Number bound) {
  constexpr int LANES = 32;
  Number lanes[LANES] = {}, total = 0;
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES)
    for (int lane = 0; lane < LANES; ++lane) lanes[lane] += keys[i + lane] >= bound;
  for (int lane = 0; lane < LANES; ++lane) total += lanes[lane];
  for (; i < count; ++i) total += keys[i] >= bound;
  return int64_t(total);
}

// A bound that exactly k of `keys`, all different, reach, for 1 ≤ k ≤ count: bit by bit, by counting.
template <class Number>
Number bound_of_largest(const Number* keys, int64_t count, int64_t k) {
  Number all = keys[0], any = keys[0];
  for (int64_t i = 0; i < count; ++i) all &= keys[i], any |= keys[i];
  Number bound = 0;
  for (Number bit = Number(1) << (8 * sizeof(Number) - 1); bit; bit >>= 1) {
    if (!((all ^ any) & bit)) {  // the same in all
      bound |= all & bit;
      continue;
    }
    const int64_t reached = count_at_least(keys, count, Number(bound | bit));
    if (reached >= k) bound |= bit;
    if (reached == k) break;
  }
  return bound;
}

template <class Number>
void mark_at_least(const Number* keys, int64_t count, Number bound, uint8_t* marks) {
  for (int64_t i = 0; i < count; ++i) marks[i] = keys[i] >= bound;
}

// The end of the run of equal numbers that begins at `begin`.
inline int64_t run_end(const int64_t* numbers, int64_t stride, int64_t begin, int64_t count) {
  const int64_t number = numbers[begin * stride];
  int64_t i = begin;
  if (stride == 1)
    for (; i + 32 <= count; i += 32) {
      int64_t differ = 0;
      for (int t = 0; t < 32; ++t) differ |= numbers[i + t] ^ number;
      if (differ) break;
    }
  while (i < count && numbers[i * stride] == number) ++i;
  return i;
}

template <class Score>
const SelectLoops<Score>& loops() {
  static const SelectLoops<Score> table = {keys_of<Score>, bound_of_largest<Key<Score>>, mark_at_least<Key<Score>>, run_end};
  return table;
}
