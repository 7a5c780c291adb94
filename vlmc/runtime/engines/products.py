"""Products of matrices, in C++ for a compiled step on a CPU.

torch hands them to MKL or oneDNN, which are made for prompts: they ask for memory at each call, and
for the rows of a batch they read weights more slowly than memory gives them. Here four columns at a
time are read where they lie, multiplied with all rows and summed up in fp32.
"""

from __future__ import annotations

PRODUCTS_KERNEL = r"""
#include <torch/csrc/inductor/cpp_prefix.h>

namespace vlmc {
namespace {

using Sum = at::vec::Vectorized<float>;

// As many numbers as lie in a vector.
template <typename T>
constexpr int64_t lanes = Sum::size() * (sizeof(float) / sizeof(T));

template <typename T>
auto wide(const T* from) {
  if constexpr (std::is_same_v<T, float>)
    return at::vec::VectorizedN<float, 1>(Sum::loadu(from));
  else
    return at::vec::convert<float, 2, T, 1>(at::vec::VectorizedN<T, 1>::loadu(from));
}

// Of the next columns, which memory gives while these are multiplied.
template <typename T>
inline void prefetch(const T* from) {
#ifdef __GNUC__
  __builtin_prefetch(from);
#endif
}

// Sums over `depth`, in whole vectors, of products of R rows of `left` with C columns, which lie
// one by one.
template <int R, int C, typename T>
void add(Sum (&sums)[R][C], const T* left, const T* columns, int64_t depth, int64_t left_step,
         int64_t column_step) {
  constexpr int parts = sizeof(float) / sizeof(T);
  for (auto& row : sums)
    for (auto& sum : row) sum = Sum(0.0f);
  for (int64_t at = 0; at + lanes<T> <= depth; at += lanes<T>) {
    at::vec::VectorizedN<float, parts> column[C];
    for (int c = 0; c < C; c++) {
      column[c] = wide(columns + c * column_step + at);
      prefetch(columns + (C + c) * column_step + at);
    }
    for (int r = 0; r < R; r++) {
      auto row = wide(left + r * left_step + at);
      for (int part = 0; part < parts; part++)
        for (int c = 0; c < C; c++)
          sums[r][c] = at::vec::fmadd(row[part], column[c][part], sums[r][c]);
    }
  }
}

// The same where a CPU multiplies numbers of bfloat16 two by two. The code around is for others,
// too.
#if defined(CPU_CAPABILITY_AVX512) && defined(__GNUC__)
const bool has_pairs = __builtin_cpu_supports("avx512bf16");

template <int R, int C>
__attribute__((target("avx512f,avx512bf16"))) void add_pairs(
    Sum (&sums)[R][C], const at::BFloat16* left, const at::BFloat16* columns, int64_t depth,
    int64_t left_step, int64_t column_step) {
  __m512 totals[R][C];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) totals[r][c] = _mm512_setzero_ps();
  for (int64_t at = 0; at + 32 <= depth; at += 32) {
    __m512bh column[C];
    for (int c = 0; c < C; c++) {
      column[c] = (__m512bh)_mm512_loadu_si512(columns + c * column_step + at);
      prefetch(columns + (C + c) * column_step + at);
    }
    for (int r = 0; r < R; r++) {
      auto row = (__m512bh)_mm512_loadu_si512(left + r * left_step + at);
      for (int c = 0; c < C; c++) totals[r][c] = _mm512_dpbf16_ps(totals[r][c], row, column[c]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) sums[r][c] = totals[r][c];
}

template <int R, int C>
void add(Sum (&sums)[R][C], const at::BFloat16* left, const at::BFloat16* columns, int64_t depth,
         int64_t left_step, int64_t column_step) {
  if (has_pairs) return add_pairs(sums, left, columns, depth, left_step, column_step);
  add<R, C, at::BFloat16>(sums, left, columns, depth, left_step, column_step);
}
#endif

template <int R, int C, typename T>
void tile(T* out, const T* left, const T* columns, const T* bias, int64_t depth, int64_t out_step,
          int64_t left_step, int64_t column_step, int64_t bias_step) {
  Sum sums[R][C];
  add(sums, left, columns, depth, left_step, column_step);
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) {
      float sum = at::vec::vec_reduce_all<float>(
          [](Sum& one, Sum& other) { return one + other; }, sums[r][c]);
      for (int64_t rest = depth / lanes<T> * lanes<T>; rest < depth; rest++)
        sum += float(left[r * left_step + rest]) * float(columns[c * column_step + rest]);
      out[r * out_step + c] = sum + (bias == nullptr ? 0.0f : float(bias[r * bias_step + c]));
    }
}

template <int R, typename T>
void strip(T* out, const T* left, const T* columns, const T* bias, int64_t count, int64_t depth,
           int64_t out_step, int64_t left_step, int64_t column_step, int64_t bias_step) {
  if (count == 4) return tile<R, 4>(out, left, columns, bias, depth, out_step, left_step,
                                    column_step, bias_step);
  for (int64_t c = 0; c < count; c++)
    tile<R, 1>(out + c, left, columns + c * column_step, bias == nullptr ? bias : bias + c, depth,
               out_step, left_step, column_step, bias_step);
}

template <typename T>
void product(T* out, const T* left, const T* right, const T* bias, int64_t rows, int64_t columns,
             int64_t depth, int64_t left_step, int64_t column_step, int64_t bias_step) {
#pragma omp parallel for
  for (int64_t c = 0; c < columns; c += 4)
    for (int64_t r = 0; r < rows; r += 4) {
      auto multiplied = [&](auto run) {
        run(out + r * columns + c, left + r * left_step, right + c * column_step,
            bias == nullptr ? bias : bias + r * bias_step + c, std::min<int64_t>(4, columns - c),
            depth, columns, left_step, column_step, bias_step);
      };
      switch (rows - r) {
        case 1: multiplied(strip<1, T>); break;
        case 2: multiplied(strip<2, T>); break;
        case 3: multiplied(strip<3, T>); break;
        default: multiplied(strip<4, T>);
      }
    }
}

}  // namespace
}  // namespace vlmc

extern "C" void vlmc_product(char number, void* out, const void* left, const void* right,
                             const void* bias, int64_t rows, int64_t columns, int64_t depth,
                             int64_t left_step, int64_t column_step, int64_t bias_step) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    vlmc::product(static_cast<T*>(out), static_cast<const T*>(left), static_cast<const T*>(right),
                  static_cast<const T*>(bias), rows, columns, depth, left_step, column_step,
                  bias_step);
  };
  if (number == 'b') run(at::BFloat16());
  else if (number == 'h') run(at::Half());
  else run(float());
}
"""
"""A kernel; `bias` may be none."""

PRODUCTS_CALLS = r"""
extern "C" void vlmc_product(char, void*, const void*, const void*, const void*, int64_t, int64_t,
                             int64_t, int64_t, int64_t, int64_t);

namespace vlmc {
namespace {

// A matrix, or a single row that is one for every row, as it lies in memory.
struct Matrix {
  Matrix(const Kept& kept) : at(kept.data_ptr()), dtype(kept.dtype()), ndim(kept.ndim()),
                             sizes(kept.sizes()), strides(kept.strides()) {}
  Matrix(AtenTensorHandle tensor) {
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &at));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &ndim));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, const_cast<int64_t**>(&sizes)));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, const_cast<int64_t**>(&strides)));
  }
  int64_t step(int axis) const { return sizes[axis] == 1 ? 0 : strides[axis]; }
  void* at;
  int32_t dtype;
  int64_t ndim;
  const int64_t* sizes;
  const int64_t* strides;
};

// Whether a product lies in memory as the kernel reads and writes it; then it is done. What is
// added is a row for all or for each.
[[maybe_unused]] bool product(const Matrix& out, const Matrix& left, const Matrix& right,
                              const Matrix* bias) {
  char number = out.dtype == aoti_torch_dtype_float32() ? 'f'
                : out.dtype == aoti_torch_dtype_bfloat16() ? 'b'
                : out.dtype == aoti_torch_dtype_float16() ? 'h' : 0;
  int64_t rows = out.sizes[0], columns = out.sizes[1], depth = left.sizes[1];
  bool laid = left.strides[1] == 1 && right.strides[0] == 1 && out.strides[1] == 1 &&
              (rows == 1 || out.strides[0] == columns);
  if (bias != nullptr)
    laid = laid && bias->ndim > 0 && bias->strides[bias->ndim - 1] == 1 &&
           bias->sizes[bias->ndim - 1] == columns;
  if (!laid || number == 0) return false;
  bool added = bias != nullptr;
  vlmc_product(number, out.at, left.at, right.at, added ? bias->at : nullptr, rows, columns, depth,
               left.strides[0], right.strides[1], added && bias->ndim == 2 ? bias->step(0) : 0);
  return true;
}

// What the code of torch's compiler calls for a product, with or without what is added to it. The
// names are those of torch's functions, which take no Kept as it is: such calls come here.
template <typename L, typename R>
[[maybe_unused]] AOTITorchError aoti_torch_cpu_mm_out(Kept& out, L&& left, R&& right) {
  if (product(Matrix(out), Matrix(left), Matrix(right), nullptr)) return AOTI_TORCH_SUCCESS;
  return ::aoti_torch_cpu_mm_out(out, left, right);
}
template <typename B, typename L, typename R>
[[maybe_unused]] AOTITorchError aoti_torch_cpu_addmm_out(Kept& out, B&& bias, L&& left, R&& right,
                                                         double beta, double alpha) {
  Matrix added(bias);
  if (beta == 1 && alpha == 1 && product(Matrix(out), Matrix(left), Matrix(right), &added))
    return AOTI_TORCH_SUCCESS;
  return ::aoti_torch_cpu_addmm_out(out, bias, left, right, beta, alpha);
}

}  // namespace
}  // namespace vlmc
"""
"""For a step's own code, behind its `Kept`."""
