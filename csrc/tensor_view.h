// Python lists of tensors -> checked Rows. With bindings.cpp the only code that knows Python; nothing below it does.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "chunk_plan.h"
#include "dlpack_abi.h"
#include "pipeline.h"

namespace gru_fast {

namespace py = pybind11;

// Lends a view of a torch.Tensor. Valid while the tensor lives and is not resized.
dlpack::Tensor view_of(py::handle tensor);

// The stream PyTorch works on right now on a CUDA device.
void* current_stream(int device_id);

// The pointer of a contiguous helper tensor (statistics, scratch), checked for dtype, size and device.
void* helper_pointer(py::handle tensor, const char* what, uint8_t code, uint8_t bits, int64_t min_numel,
                     dlpack::Device device);

// Tensors that stay what they are from step to step (the EMA of a RetainEMA), looked at once. Keeps them alive; nobody
// else may hold them, or a resize would leave the views behind.
class TensorList {
 public:
  // The e of one parameter, and what every step asks of it.
  struct View {
    dlpack::Tensor tensor;
    DType dtype;
    int64_t numel;
    bool contiguous;
    bool dense;
  };

  explicit TensorList(const py::sequence& tensors);
  size_t size() const { return views_.size(); }
  const View& operator[](size_t i) const { return views_[i]; }

 private:
  py::tuple tensors_;
  std::vector<View> views_;
};

// One step's gradients, retain gradients and EMA as rows. Every list has one entry per parameter; gradients may be
// None.
struct Capture {
  std::vector<Row> rows;
  std::vector<Kind> kinds;
  dlpack::Device device;
  // Rows whose tensors are not laid out alike in memory; they must be handed in again as copies that are.
  std::vector<size_t> mismatched_layouts;
  std::vector<size_t> missing_grads;  // rows without a gradient
};

// `ema`: a TensorList or a sequence of tensors. `ema_is_current`: one bool, or one per parameter. `ids`: None or one
// position per parameter, what messages call it (default: its index). `names`: None or one name per parameter, for
// messages. `rounding_keys`: None or one key per parameter (default: its id). `is_direct`: `ema` is the retain
// gradients themselves, which are only read. Raises TypeError or ValueError naming the culprit.
Capture capture(py::sequence grads, py::object retain, py::object ema, py::object ema_is_current, py::object ids,
                py::object names, py::object rounding_keys, bool is_direct);

}  // namespace gru_fast
