// The loops of select.h over whole segments, for one set of instructions; included once for each, inside a namespace of
// its own. Plain loops, which the compiler turns into vectors as wide as the instructions allow.

// An order for every score of a row, see `OrderOf` in select.h, multiplied by its prior and by `weight`.
template <class Score>
void orders_of(const Row<Score>& row, Score weight, OrderOf<Score>* orders) {
  using Order = OrderOf<Score>;
  constexpr Order SIGN = Order(1) << (8 * sizeof(Order) - 1);
  const auto order_of = [=](Score score) {
    const Score value = score == 0 ? Score(0) : score;  // −0 is +0
    Order bits;
    __builtin_memcpy(&bits, &value, sizeof(bits));
    return score != score ? Order(1) : bits & SIGN ? Order(~bits) : Order(bits | SIGN);  // −∞ is more than 1
  };
  const int64_t count = row.columns, stride = row.score_stride, prior_stride = row.prior_stride;
  const Score *scores = row.scores, *prior = row.prior;
  if (prior)
    for (int64_t i = 0; i < count; ++i) orders[i] = order_of(scores[i * stride] * prior[i * prior_stride] * weight);
  else if (stride == 1)
    for (int64_t i = 0; i < count; ++i) orders[i] = order_of(scores[i] * weight);
  else
    for (int64_t i = 0; i < count; ++i) orders[i] = order_of(scores[i * stride] * weight);
}

// The end of the run that begins at `begin`, of numbers that rise by `step` from one to the next.
template <uint64_t step>
int64_t run_end(const int64_t* numbers, int64_t stride, int64_t begin, int64_t count) {
  const auto first = [=](int64_t i) { return uint64_t(numbers[i * stride]) - step * uint64_t(i - begin); };
  const uint64_t number = first(begin);
  int64_t i = begin;
  if (stride == 1)
    for (; i + 32 <= count; i += 32) {
      uint64_t differ = 0;
      for (int t = 0; t < 32; ++t) differ |= (uint64_t(numbers[i + t]) - step * uint64_t(i - begin + t)) ^ number;
      if (differ) break;
    }
  while (i < count && first(i) == number) ++i;
  return i;
}

// Raises `best` by position to the largest of `orders`, and notes where that is first. Frames show in long runs of
// consecutive positions, which are vectors; other columns go one by one.
template <class Order>
void find_best(const Order* __restrict orders, const int64_t* __restrict positions, int64_t stride, int64_t count,
               uint64_t num_positions, Order* __restrict best, Order* __restrict columns) {
  constexpr int64_t LONG = 32;
  for (int64_t i = 0; i < count;) {
    const uint64_t first = uint64_t(positions[i * stride]);
    int64_t end = run_end<1>(positions, stride, i, count);
    if (end - i >= LONG && first < num_positions && uint64_t(end - i) <= num_positions - first) {
      for (int64_t t = 0; t < end - i; ++t) {
        const bool better = orders[i + t] > best[first + t];
        best[first + t] = better ? orders[i + t] : best[first + t];
        columns[first + t] = better ? Order(i + t) : columns[first + t];
      }
      i = end;
      continue;
    }
    if (end < i + LONG) end = i + LONG < count ? i + LONG : count;
    for (; i < end; ++i)
      if (const uint64_t own = uint64_t(positions[i * stride]); own < num_positions) {
        const bool better = orders[i] > best[own];
        best[own] = better ? orders[i] : best[own];
        columns[own] = better ? Order(i) : columns[own];
      }
  }
}

template <class Order>
void lower_unmarked(Order* __restrict orders, const Order* __restrict lowered, const uint8_t* __restrict marks,
                    int64_t count) {
  for (int64_t i = 0; i < count; ++i) orders[i] = marks[i] ? orders[i] : lowered[i];
}

// How many of `orders` are at least `bound`. Two sums at once, as each addition waits for the one before.
template <class Order>
int64_t count_at_least(const Order* orders, int64_t count, Order bound) {
  const int64_t half = count / 2;
  Order first = count % 2 && orders[count - 1] >= bound, second = 0;
  for (int64_t i = 0; i < half; ++i) {
    first += orders[i] >= bound;
    second += orders[half + i] >= bound;
  }
  return int64_t(first + second);
}

// What the k largest of `orders` reach, or all that are not 0 if those are fewer; it rises bit by bit, by counting.
template <class Order>
Bound<Order> bound_of_largest(const Order* orders, int64_t count, int64_t k) {
  int64_t reached = count_at_least(orders, count, Order(1));
  if (reached <= k) return {1, 0};
  Order all = orders[0], any = orders[0];
  for (int64_t i = 0; i < count; ++i) all &= orders[i], any |= orders[i];
  Order bound = 0;
  for (Order bit = Order(1) << (8 * sizeof(Order) - 1); bit && reached > k; bit >>= 1) {
    if (!((all ^ any) & bit)) {  // the same in all
      bound |= all & bit;
      continue;
    }
    const int64_t with_bit = count_at_least(orders, count, Order(bound | bit));
    if (with_bit < k) continue;
    bound |= bit;
    reached = with_bit;
  }
  return {bound, reached - k};
}

template <class Order>
void mark_at_least(const Order* __restrict orders, int64_t count, Order bound, uint8_t* __restrict marks) {
  for (int64_t i = 0; i < count; ++i) marks[i] = orders[i] >= bound;
}

template <class Score>
const SelectLoops<Score>& loops() {
  using Order = OrderOf<Score>;
  static const SelectLoops<Score> table = {orders_of<Score>, find_best<Order>, lower_unmarked<Order>,
                                           bound_of_largest<Order>, mark_at_least<Order>, run_end<0>};
  return table;
}
