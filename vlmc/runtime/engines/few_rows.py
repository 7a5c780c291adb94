"""Products of a few rows with a matrix of 16 bits, in C++ for a compiled step on a CPU.

torch hands them to oneDNN, which asks for memory at each call. Here each number of the matrix is
read once, where it lies, and multiplied in fp32.
"""

from __future__ import annotations

MOST_ROWS = 12
"""Of more, oneDNN is faster: measured in bfloat16, for which it has
instructions."""

FEW_ROWS_KERNEL = r"""
#include <torch/csrc/inductor/cpp_prefix.h>

namespace vlmc {
namespace {

// Sums over `depth` of products of R rows of `left` with C columns, which lie one by one.
template <int R, int C, typename T>
void tile(T* out, const T* left, const T* columns, const T* bias, int64_t depth, int64_t out_step,
          int64_t left_step, int64_t column_step) {
  using Sum = at::vec::Vectorized<float>;
  constexpr int64_t step = 2 * Sum::size();
  auto wide = [](const T* from) {
    return at::vec::convert<float, 2, T, 1>(at::vec::VectorizedN<T, 1>::loadu(from));
  };
  Sum sums[R][C];
  for (auto& row : sums)
    for (auto& sum : row) sum = Sum(0.0f);
  int64_t at = 0;
  for (; at + step <= depth; at += step) {
    at::vec::VectorizedN<float, 2> column[C];
    for (int c = 0; c < C; c++) {
      column[c] = wide(columns + c * column_step + at);
#ifdef __GNUC__
      // Of the next columns, which memory gives while these are multiplied.
      __builtin_prefetch(columns + (C + c) * column_step + at);
#endif
    }
    for (int r = 0; r < R; r++) {
      auto row = wide(left + r * left_step + at);
      for (int half = 0; half < 2; half++)
        for (int c = 0; c < C; c++)
          sums[r][c] = at::vec::fmadd(row[half], column[c][half], sums[r][c]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) {
      float sum = at::vec::vec_reduce_all<float>(
          [](Sum& one, Sum& other) { return one + other; }, sums[r][c]);
      for (int64_t rest = at; rest < depth; rest++)
        sum += float(left[r * left_step + rest]) * float(columns[c * column_step + rest]);
      out[r * out_step + c] = sum + (bias == nullptr ? 0.0f : float(bias[c]));
    }
}

template <int R, typename T>
void strip(T* out, const T* left, const T* columns, const T* bias, int64_t count, int64_t depth,
           int64_t out_step, int64_t left_step, int64_t column_step) {
  if (count == 4) return tile<R, 4>(out, left, columns, bias, depth, out_step, left_step,
                                    column_step);
  for (int64_t c = 0; c < count; c++)
    tile<R, 1>(out + c, left, columns + c * column_step, bias == nullptr ? bias : bias + c, depth,
               out_step, left_step, column_step);
}

template <typename T>
void few_rows(T* out, const T* left, const T* right, const T* bias, int64_t rows, int64_t columns,
              int64_t depth, int64_t left_step, int64_t column_step) {
#pragma omp parallel for
  for (int64_t c = 0; c < columns; c += 4)
    for (int64_t r = 0; r < rows; r += 4) {
      auto multiplied = [&](auto run) {
        run(out + r * columns + c, left + r * left_step, right + c * column_step,
            bias == nullptr ? bias : bias + c, std::min<int64_t>(4, columns - c), depth, columns,
            left_step, column_step);
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

extern "C" void vlmc_few_rows(bool brain, void* out, const void* left, const void* right,
                              const void* bias, int64_t rows, int64_t columns, int64_t depth,
                              int64_t left_step, int64_t column_step) {
  auto run = [&](auto number) {
    using T = decltype(number);
    vlmc::few_rows(static_cast<T*>(out), static_cast<const T*>(left), static_cast<const T*>(right),
                   static_cast<const T*>(bias), rows, columns, depth, left_step, column_step);
  };
  if (brain) run(at::BFloat16()); else run(at::Half());
}
"""
"""A kernel; `bias` may be none."""

FEW_ROWS_CALLS = r"""
extern "C" void vlmc_few_rows(bool, void*, const void*, const void*, const void*, int64_t, int64_t,
                              int64_t, int64_t, int64_t);

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

// Whether a product is one of few rows; then it is done.
[[maybe_unused]] bool few_rows(const Matrix& out, const Matrix& left, const Matrix& right,
                               const Matrix* bias) {
  bool brain = out.dtype == aoti_torch_dtype_bfloat16();
  if (!brain && out.dtype != aoti_torch_dtype_float16()) return false;
  int64_t rows = out.sizes[0], columns = out.sizes[1], depth = left.sizes[1];
  bool laid = left.strides[1] == 1 && right.strides[0] == 1 && out.strides[1] == 1 &&
              (rows == 1 || out.strides[0] == columns);
  if (bias != nullptr)
    laid = laid && bias->strides[bias->ndim - 1] == 1 && bias->sizes[bias->ndim - 1] == columns &&
           (bias->ndim == 1 || bias->step(0) == 0);
  if (!laid || rows > MOST_ROWS) return false;
  vlmc_few_rows(brain, out.at, left.at, right.at, bias == nullptr ? nullptr : bias->at, rows,
                columns, depth, left.strides[0], right.strides[1]);
  return true;
}

// What the code of torch's compiler calls for a product, with or without what is added to it. The
// names are those of torch's functions, which take no Kept as it is: such calls come here.
template <typename L, typename R>
[[maybe_unused]] AOTITorchError aoti_torch_cpu_mm_out(Kept& out, L&& left, R&& right) {
  if (few_rows(Matrix(out), Matrix(left), Matrix(right), nullptr)) return AOTI_TORCH_SUCCESS;
  return ::aoti_torch_cpu_mm_out(out, left, right);
}
template <typename B, typename L, typename R>
[[maybe_unused]] AOTITorchError aoti_torch_cpu_addmm_out(Kept& out, B&& bias, L&& left, R&& right,
                                                         double beta, double alpha) {
  Matrix added(bias);
  if (beta == 1 && alpha == 1 && few_rows(Matrix(out), Matrix(left), Matrix(right), &added))
    return AOTI_TORCH_SUCCESS;
  return ::aoti_torch_cpu_addmm_out(out, bias, left, right, beta, alpha);
}

}  // namespace
}  // namespace vlmc
""".replace("MOST_ROWS", str(MOST_ROWS))
"""For a step's own code, behind its `Kept`."""
