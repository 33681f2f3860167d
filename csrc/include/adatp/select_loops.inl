// The loops of select.h over whole segments, for one set of instructions; included once for each, inside a namespace of
// its own. Plain loops, which the compiler turns into vectors as wide as the instructions allow.

// The order of every score: unsigned integers that compare as the scores do, NaN lowest and −0 equal to +0. Never 0.
template <class Score, class Order>
void orders_of(const Score* scores, int64_t stride, const Score* prior, int64_t prior_stride, int64_t count, Order* orders) {
  constexpr Order SIGN = Order(1) << (8 * sizeof(Order) - 1);
  const auto order_of = [](Score score) {
    const Score value = score == 0 ? Score(0) : score;
    Order bits;
    __builtin_memcpy(&bits, &value, sizeof(bits));
    const Order ordered = bits & SIGN ? ~bits : bits | SIGN;  // −∞ is more than 1
    return score != score ? Order(1) : ordered;
  };
  if (prior)
    for (int64_t i = 0; i < count; ++i) orders[i] = order_of(scores[i * stride] * prior[i * prior_stride]);
  else if (stride == 1)
    for (int64_t i = 0; i < count; ++i) orders[i] = order_of(scores[i]);
  else
    for (int64_t i = 0; i < count; ++i) orders[i] = order_of(scores[i * stride]);
}

// How many of `orders` are at least `bound`. Lanes by name, so that there are enough sums to add to at once.
template <class Order>
int64_t count_at_least(const Order* orders, int64_t count, Order bound) {
  constexpr int LANES = 64;
  Order lanes[LANES] = {};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES)
    for (int lane = 0; lane < LANES; ++lane) lanes[lane] += orders[i + lane] >= bound;
  int64_t total = 0;
  for (int lane = 0; lane < LANES; ++lane) total += int64_t(lanes[lane]);
  for (; i < count; ++i) total += orders[i] >= bound;
  return total;
}

// A bound that k of `orders` reach and no more than k exceed, for 1 ≤ k ≤ count: bit by bit, by counting.
template <class Order>
Order kth_largest(const Order* orders, int64_t count, int64_t k) {
  Order all = orders[0], any = orders[0];
  for (int64_t i = 0; i < count; ++i) all &= orders[i], any |= orders[i];
  Order threshold = 0;
  for (Order bit = Order(1) << (8 * sizeof(Order) - 1); bit; bit >>= 1) {
    if (!((all ^ any) & bit)) {  // the same for all
      threshold |= all & bit;
      continue;
    }
    const int64_t at_least = count_at_least(orders, count, Order(threshold | bit));
    if (at_least >= k) threshold |= bit;
    if (at_least == k) break;
  }
  return threshold;
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

inline const SelectLoops& loops() {
  static const SelectLoops table = {orders_of<float, uint32_t>, orders_of<double, uint64_t>, kth_largest<uint32_t>,
                                    kth_largest<uint64_t>, run_end};
  return table;
}
