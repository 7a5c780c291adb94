// How the code of a graph calls the kernel of attention.cpp. What torch's kernel says of its sums is
// not filled in: only training reads it.
#include <algorithm>
#include <array>
#include <cmath>

extern "C" void vlmc_attention(char, const int64_t*, const int64_t*, double, bool, void*,
                               const void*, const void*, const void*, const void*);

namespace vlmc {
namespace {

// [batch, heads, rows, numbers].
struct Lying {
  explicit Lying(AtenTensorHandle tensor) {
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &at));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &ndim));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, &sizes));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &strides));
  }
  bool known(int32_t as) const {
    return ndim == 4 && dtype == as && (strides[3] == 1 || sizes[3] == 1);
  }
  int64_t step(int axis) const { return sizes[axis] == 1 ? 0 : strides[axis]; }
  void* at;
  int32_t dtype;
  int64_t ndim;
  int64_t* sizes;
  int64_t* strides;
};

// Of the first `ndim` of some sizes, dense, its axes in the order in which those of `like` lie.
AtenTensorHandle made(int64_t ndim, const int64_t* sizes, const int64_t* like, int32_t dtype) {
  std::array<int64_t, 4> steps{}, axes{0, 1, 2, 3};
  std::stable_sort(axes.begin(), axes.begin() + ndim,
                   [&](int64_t one, int64_t other) { return like[one] > like[other]; });
  int64_t step = 1;
  for (int64_t at = ndim - 1; at >= 0; at--) {
    steps[axes[at]] = step;
    step *= std::max<int64_t>(sizes[axes[at]], 1);
  }
  AtenTensorHandle tensor;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      ndim, sizes, steps.data(), dtype, aoti_torch_device_type_cpu(), 0, &tensor));
  return tensor;
}

// In the place of torch's function, which does what the kernel does not know.
[[maybe_unused]] AOTITorchError own_attention(
    AtenTensorHandle query, AtenTensorHandle key, AtenTensorHandle value, double dropout,
    int32_t causal, AtenTensorHandle* mask, double* scale, AtenTensorHandle* out,
    AtenTensorHandle* logarithms) {
  Lying q(query), k(key), v(value), m(mask == nullptr ? query : *mask);
  char number = q.dtype == aoti_torch_dtype_float32() ? 'f'
                : q.dtype == aoti_torch_dtype_bfloat16() ? 'b'
                : q.dtype == aoti_torch_dtype_float16() ? 'h' : 0;
  bool known = number != 0 && dropout == 0 && q.known(q.dtype) && k.known(q.dtype) &&
               v.known(q.dtype) && m.known(q.dtype) && q.strides[0] > 0 && q.strides[1] > 0 &&
               q.strides[2] > 0 && k.sizes[1] > 0 && q.sizes[1] % k.sizes[1] == 0 &&
               k.sizes[1] == v.sizes[1] && q.sizes[3] == v.sizes[3] &&
               q.sizes[0] == k.sizes[0] && (mask == nullptr ||
               ((m.sizes[2] == 1 || m.sizes[2] == q.sizes[2]) && m.sizes[3] == k.sizes[2]));
  if (!known)
    return ::aoti_torch_cpu__scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout, causal, mask, scale, out, logarithms);
  const int64_t rows_first[] = {3, 1, 2};
  *out = made(4, q.sizes, q.strides, q.dtype);
  *logarithms = made(3, q.sizes, rows_first, aoti_torch_dtype_float32());
  Lying o(*out);
  int64_t sizes[] = {q.sizes[0], q.sizes[1], q.sizes[2], k.sizes[2], q.sizes[3],
                     q.sizes[1] / k.sizes[1]};
  int64_t steps[15];
  int at = 0;
  for (const Lying* one : {&o, &q, &k, &v, &m})
    for (int axis = 0; axis < 3; axis++) steps[at++] = one->step(axis);
  vlmc_attention(number, sizes, steps, scale == nullptr ? 1 / std::sqrt(q.sizes[3]) : *scale,
                 causal != 0, o.at, q.at, k.at, v.at, mask == nullptr ? nullptr : m.at);
  return AOTI_TORCH_SUCCESS;
}

}  // namespace
}  // namespace vlmc

// By this name the code of torch's compiler calls it.
#define aoti_torch_cpu__scaled_dot_product_flash_attention_for_cpu vlmc::own_attention
