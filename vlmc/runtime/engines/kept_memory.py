"""What a compiled step computes in, kept from one step to the next.

torch's compiler for CPUs has the code of a graph ask torch's allocator for each buffer at each
call. Here the buffers of a step lie in blocks which the thread that runs it keeps: one that is free
again serves the next buffer of its size, so that in the steady state nothing is asked for. They are
given back when the thread ends.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import import_module
from typing import Any

from vlmc.runtime.engines.products import PRODUCTS_CALLS, PRODUCTS_KERNEL

BLOCKS = r"""
#include <algorithm>
#include <memory>
#include <new>
#include <vector>

namespace vlmc {
namespace {

// Memory of a power of two of bytes, so that a buffer that grows with the sequence seldom moves.
struct Block {
  explicit Block(int64_t bytes) : size(bytes), at(static_cast<char*>(
      ::operator new(bytes, std::align_val_t(64)))) {}
  ~Block() { ::operator delete(at, std::align_val_t(64)); }
  Block(const Block&) = delete;
  int64_t size;
  char* at;
  int64_t users = 0;
};

Block* free_block(int64_t bytes) {
  static thread_local std::vector<std::unique_ptr<Block>> blocks;
  int64_t size = 64;
  while (size < bytes) size *= 2;
  for (auto& block : blocks)
    if (block->users == 0 && block->size == size) return block.get();
  blocks.push_back(std::make_unique<Block>(size));
  return blocks.back().get();
}

int64_t extent(int64_t ndim, const int64_t* sizes, const int64_t* strides) {
  int64_t last = 0;
  for (int64_t axis = 0; axis < ndim; axis++) {
    if (sizes[axis] == 0) return 0;
    last += (sizes[axis] - 1) * strides[axis];
  }
  return last + 1;
}

// A buffer, or a view of one or of a tensor, in the place of a tensor. A kernel of torch's own that
// takes tensors is given one over the same memory.
class Kept {
 public:
  // A buffer of elements of `item` bytes that never has more than `most`, where that is known.
  Kept(int64_t ndim, const int64_t* sizes, const int64_t* strides, int32_t dtype, int64_t item,
       int64_t most)
      : Kept(free_block(std::max(extent(ndim, sizes, strides), most) * item), nullptr, ndim, sizes,
             strides, dtype, item) { at_ = block_->at; }
  Kept(Kept&& other) : Kept(other.block_, other.at_, other.ndim_, other.sizes_, other.strides_,
                            other.dtype_, other.item_) { other.reset(); }
  ~Kept() { reset(); }
  Kept view(int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t offset) const {
    return Kept(block_, at_ + offset * item_, ndim, sizes, strides, dtype_, item_);
  }
  static Kept of(AtenTensorHandle tensor, int64_t ndim, const int64_t* sizes,
                 const int64_t* strides, int64_t offset) {
    void* at;
    int32_t dtype;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &at));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
    int64_t item = aoti_torch_dtype_element_size(dtype);
    return Kept(nullptr, static_cast<char*>(at) + offset * item, ndim, sizes, strides, dtype, item);
  }
  void* data_ptr() const { return at_; }
  int32_t dtype() const { return dtype_; }
  int64_t ndim() const { return ndim_; }
  const int64_t* sizes() const { return sizes_; }
  const int64_t* strides() const { return strides_; }
  void reset() {
    tensor_.reset();
    if (block_ != nullptr) block_->users--;
    block_ = nullptr;
  }
  operator AtenTensorHandle() {
    if (tensor_.get() == nullptr) {
      AtenTensorHandle made;
      AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
          at_, ndim_, sizes_, strides_, 0, dtype_, aoti_torch_device_type_cpu(), 0, &made));
      tensor_ = torch::aot_inductor::RAIIAtenTensorHandle(made);
    }
    return tensor_.get();
  }

 private:
  Kept(Block* block, char* at, int64_t ndim, const int64_t* sizes, const int64_t* strides,
       int32_t dtype, int64_t item)
      : block_(block), at_(at), ndim_(ndim), sizes_(sizes), strides_(strides), dtype_(dtype),
        item_(item) { if (block_ != nullptr) block_->users++; }
  Block* block_;
  char* at_;
  int64_t ndim_;
  const int64_t* sizes_;
  const int64_t* strides_;
  int32_t dtype_;
  int64_t item_;
  torch::aot_inductor::RAIIAtenTensorHandle tensor_;
};

// A view of what outlives the step.
[[maybe_unused]] Kept view(AtenTensorHandle whole, int64_t ndim, const int64_t* sizes,
                           const int64_t* strides, int64_t offset) {
  return Kept::of(whole, ndim, sizes, strides, offset);
}
// What the code of torch's compiler calls for other views.
[[maybe_unused]] Kept reinterpret_tensor_wrapper(
    const Kept& whole, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t offset) {
  return whole.view(ndim, sizes, strides, offset);
}
[[maybe_unused]] Kept wrap_with_raii_handle_if_needed(Kept&& view) { return std::move(view); }

}  // namespace
}  // namespace vlmc
"""

BOUNDED = 2**20
"""Elements of a buffer that has its largest size from the first step on; larger ones grow."""

WRITTEN = f"{BOUNDED}{BLOCKS}{PRODUCTS_CALLS}{PRODUCTS_KERNEL}"
MARK = {"vlmc_blocks": hashlib.sha256(WRITTEN.encode()).hexdigest()[:16]}


def kept_memory() -> dict[str, Any]:
    """Options for torch's compiler, by which the buffers of a graph without outputs are kept if it
    is for a CPU. It stores what it makes by its options: hence the digest among them."""
    teach()
    # That inputs are as declared is looked at in front of the call already, without strings.
    return {"aot_inductor.metadata": dict(MARK), "size_asserts": False}


def has_vectors() -> bool:
    """Whether torch's compiler knows vectors of this CPU, which kernels here need."""
    isa: Any = import_module("torch._inductor.cpu_vec_isa")
    return bool(isa.pick_vec_isa())


@cache
def teach() -> None:
    """Has torch's compiler for CPUs write the C++ code that calls the kernels of a graph by a class
    that keeps memory where the options say so."""
    common: Any = import_module("torch._inductor.codegen.common")
    common.init_backend_registration()
    cpu = common.device_codegens["cpu"]
    # Another copy of this module may have been here (a build's run.py has one).
    wrapper: Any = getattr(cpu.cpp_wrapper_codegen, "of_torch", cpu.cpp_wrapper_codegen)
    settings: Any = import_module("torch._inductor.config")
    sympify: Any = import_module("sympy").sympify
    virtualized: Any = import_module("torch._inductor.virtualized")

    class KeptMemory(wrapper):
        of_torch = wrapper

        @staticmethod
        def create(*args: Any) -> Any:
            marked = MARK.items() <= settings.aot_inductor.metadata.items()
            return KeptMemory() if marked else wrapper.create(*args)

        def write_header(self) -> None:
            wrapper.write_header(self)
            self.header.splice(BLOCKS)
            self.multiplies = False

        def generate_extern_kernel_out(self, node: Any) -> None:
            if not self.multiplies and has_vectors():
                self.multiplies = True
                self.header.splice(PRODUCTS_CALLS)
                self.kernel_declarations.splice(PRODUCTS_KERNEL)
            wrapper.generate_extern_kernel_out(self, node)

        def codegen_reinterpret_view(self, data: Any, *args: Any, **named: Any) -> str:
            made: str = wrapper.codegen_reinterpret_view(self, data, *args, **named)
            name, whole = data.get_name(), virtualized.V.graph
            if name in whole.graph_inputs or name in whole.constants:
                return made.replace("reinterpret_tensor_wrapper(", "vlmc::view(")
            return made  # torch's own may be given back while the view is read

        def make_allocation(
            self,
            name: str,
            device: Any,
            dtype: Any,
            shape: Any,
            stride: Any,
            allocation_shape: Any = None,
            is_pinned: bool = False,
        ) -> str:
            graph, sizes = self.get_codegened_graph(), allocation_shape or shape
            arrays = [
                self.codegen_int_array_var(
                    self.codegen_shape_tuple(numbers),
                    self.wrapper_call.writeline,
                    known_statically=self.is_statically_known_list_of_ints(numbers),
                    graph=graph,
                )
                for numbers in (sizes, stride)
            ]
            last = sum((size - 1) * step for size, step in zip(sizes, stride, strict=True))
            most = graph.sizevars.shape_env.bound_sympy(sympify(last)).upper + 1
            rest = f"{self.codegen_dtype(dtype)}, {dtype.itemsize}, {most if most < BOUNDED else 0}"
            return f"vlmc::Kept {name}({len(shape)}, {', '.join(arrays)}, {rest});"

    cpu.cpp_wrapper_codegen = KeptMemory
