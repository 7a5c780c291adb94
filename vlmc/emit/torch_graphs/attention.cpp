// Attention of many queries; see attention.py. It is written into a graph's kernels.
#include <torch/csrc/inductor/cpp_prefix.h>

#include <limits>
#include <vector>

namespace vlmc {
namespace {

using Sum = at::vec::Vectorized<float>;
constexpr int64_t W = Sum::size(), panel = 2 * W, queries = 6;

// Tensors [batch, heads, rows, numbers]; the numbers lie one by one.
struct Steps {
  int64_t batch, head, row;
};
struct Problem {
  int64_t batch, heads, rows, keys, depth, shared;
  Steps out, query, key, value, mask;
  float scale;
  bool causal;
};

int64_t whole(int64_t count, int64_t of) { return (count + of - 1) / of * of; }

// What one thread works in: of one head keys, turned in panels [depth, panel] of keys, and values
// [keys, width], both in fp32 and filled up with zeros; queries and scores of a tile.
struct Room {
  std::vector<float> keys, values, query, scores;
};

template <typename T>
void pack(Room& room, const Problem& p, const T* key, const T* value) {
  int64_t count = whole(p.keys, panel), width = whole(p.depth, panel);
  room.keys.resize(count * p.depth);
  room.values.resize(p.keys * width);
  room.query.resize(queries * p.depth);
  room.scores.resize(queries * count);
  for (int64_t first = 0; first < count; first += panel)
    for (int64_t lane = 0; lane < panel; lane++) {
      float* to = room.keys.data() + first * p.depth + lane;
      const T* from = key + (first + lane) * p.key.row;
      for (int64_t d = 0; d < p.depth; d++)
        to[d * panel] = first + lane < p.keys ? float(from[d]) : 0.0f;
    }
  for (int64_t k = 0; k < p.keys; k++)
    for (int64_t d = 0; d < width; d++)
      room.values[k * width + d] = d < p.depth ? float(value[k * p.value.row + d]) : 0.0f;
}

// R rows of sums over `depth` of numbers of `left`, `step` apart from row to row, with vectors of
// `right`, [depth, panel] every `right_step`.
template <int R>
void multiply(Sum (&sums)[R][2], const float* left, int64_t step, const float* right,
              int64_t right_step, int64_t depth) {
  for (auto& row : sums)
    for (auto& sum : row) sum = Sum(0.0f);
  for (int64_t d = 0; d < depth; d++) {
    Sum one = Sum::loadu(right + d * right_step), other = Sum::loadu(right + d * right_step + W);
    for (int r = 0; r < R; r++) {
      Sum number(left[r * step + d]);
      sums[r][0] = at::vec::fmadd(number, one, sums[r][0]);
      sums[r][1] = at::vec::fmadd(number, other, sums[r][1]);
    }
  }
}

// From scores to parts of 1, in place: of `seen` keys, and nothing of those up to `count`.
void soften(float* scores, int64_t seen, int64_t count) {
  const float none = -std::numeric_limits<float>::infinity();
  for (int64_t k = seen; k < count; k++) scores[k] = none;
  Sum most(none);
  for (int64_t k = 0; k < count; k += W) most = at::vec::maximum(most, Sum::loadu(scores + k));
  float largest = at::vec::vec_reduce_all<float>(
      [](Sum& one, Sum& other) { return at::vec::maximum(one, other); }, most);
  if (largest == none) largest = 0.0f;  // it attends to nothing
  Sum whole(0.0f);
  for (int64_t k = 0; k < count; k += W) {
    Sum part = (Sum::loadu(scores + k) - Sum(largest)).exp_u20();
    part.store(scores + k);
    whole = whole + part;
  }
  float total = at::vec::vec_reduce_all<float>(
      [](Sum& one, Sum& other) { return one + other; }, whole);
  Sum share(total == 0.0f ? 0.0f : 1.0f / total);
  for (int64_t k = 0; k < count; k += W) (Sum::loadu(scores + k) * share).store(scores + k);
}

// R queries of one head from `first` on.
template <int R, typename T>
void tile(Room& room, const Problem& p, int64_t first, T* out, const T* query, const T* mask) {
  const float none = -std::numeric_limits<float>::infinity();
  int64_t seen = p.causal ? std::min(p.keys, first + R) : p.keys, width = whole(p.depth, panel);
  if (mask != nullptr) {
    auto unseen = [&](int64_t key) {
      for (int r = 0; r < R; r++)
        if (float(mask[(first + r) * p.mask.row + key]) != none) return false;
      return true;
    };
    while (seen > 0 && unseen(seen - 1)) seen--;
  }
  int64_t count = whole(seen, panel), step = whole(p.keys, panel);
  float* scores = room.scores.data();
  for (int r = 0; r < R; r++)
    for (int64_t d = 0; d < p.depth; d++)
      room.query[r * p.depth + d] = p.scale * float(query[(first + r) * p.query.row + d]);
  Sum sums[R][2];
  for (int64_t k = 0; k < count; k += panel) {
    multiply(sums, room.query.data(), p.depth, room.keys.data() + k * p.depth, panel, p.depth);
    for (int r = 0; r < R; r++)
      for (int part = 0; part < 2; part++) sums[r][part].store(scores + r * step + k + part * W);
  }
  for (int r = 0; r < R; r++) {
    float* row = scores + r * step;
    if (mask != nullptr)
      for (int64_t k = 0; k < seen; k++) row[k] += float(mask[(first + r) * p.mask.row + k]);
    soften(row, p.causal ? std::min(seen, first + r + 1) : seen, count);
  }
  for (int64_t d = 0; d < p.depth; d += panel) {
    multiply(sums, scores, step, room.values.data() + d, width, seen);
    for (int r = 0; r < R; r++) {
      float row[panel];
      for (int part = 0; part < 2; part++) sums[r][part].store(row + part * W);
      T* to = out + (first + r) * p.out.row + d;
      for (int64_t lane = 0; lane < std::min(panel, p.depth - d); lane++) to[lane] = T(row[lane]);
    }
  }
}

template <typename T>
void attention(const Problem& p, T* out, const T* query, const T* key, const T* value,
               const T* mask) {
  // Each task is some tiles of one head; enough of them for all threads.
  int64_t tiles = (p.rows + queries - 1) / queries, heads = p.batch * p.heads;
  int64_t wanted = (4 * omp_get_max_threads() + heads - 1) / std::max<int64_t>(heads, 1);
  int64_t each = std::max<int64_t>(1, tiles / wanted), chunks = (tiles + each - 1) / each;
#pragma omp parallel
  {
    static thread_local Room room;
    int64_t packed = -1;
#pragma omp for
    for (int64_t task = 0; task < heads * chunks; task++) {
      int64_t head = task / chunks, b = head / p.heads, h = head % p.heads, shared = h / p.shared;
      if (head != packed)
        pack(room, p, key + b * p.key.batch + shared * p.key.head,
             value + b * p.value.batch + shared * p.value.head);
      packed = head;
      T* to = out + b * p.out.batch + h * p.out.head;
      const T* from = query + b * p.query.batch + h * p.query.head;
      const T* hidden = mask == nullptr ? mask : mask + b * p.mask.batch + h * p.mask.head;
      int64_t end = std::min(p.rows, (task % chunks + 1) * each * queries);
      for (int64_t first = task % chunks * each * queries; first < end; first += queries) {
        switch (end - first) {
          case 1: tile<1>(room, p, first, to, from, hidden); break;
          case 2: tile<2>(room, p, first, to, from, hidden); break;
          case 3: tile<3>(room, p, first, to, from, hidden); break;
          case 4: tile<4>(room, p, first, to, from, hidden); break;
          case 5: tile<5>(room, p, first, to, from, hidden); break;
          default: tile<6>(room, p, first, to, from, hidden);
        }
      }
    }
  }
}

}  // namespace
}  // namespace vlmc

// There may be no mask; `sizes` and `steps` are those of a Problem in its order.
extern "C" void vlmc_attention(char number, const int64_t* sizes, const int64_t* steps,
                               double scale, bool causal, void* out, const void* query,
                               const void* key, const void* value, const void* mask) {
  auto three = [&](int of) { return vlmc::Steps{steps[of], steps[of + 1], steps[of + 2]}; };
  vlmc::Problem p{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], three(0), three(3),
                  three(6), three(9), three(12), float(scale), causal};
  auto run = [&](auto zero) {
    using T = decltype(zero);
    vlmc::attention(p, static_cast<T*>(out), static_cast<const T*>(query),
                    static_cast<const T*>(key), static_cast<const T*>(value),
                    static_cast<const T*>(mask));
  };
  if (number == 'b') run(at::BFloat16());
  else if (number == 'h') run(at::Half());
  else run(float());
}
