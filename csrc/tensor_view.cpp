#include "tensor_view.h"

#include "tensor_checks.h"

namespace gru_fast {
namespace {

struct RowInput {
  py::handle grad, retain;
  py::handle ema;                     // or
  const TensorList::View* known_ema;  // from a TensorList; null otherwise
  bool ema_is_current;
  bool is_direct;         // e is r itself, which is only read
  size_t id;              // what messages call it
  uint32_t rounding_key;  // below 2^31
};

TensorList::View view_ema(py::handle object, const Label& label, Access access = Access::kWrite) {
  const dlpack::Tensor t = view_checked(object, label);
  check_pageable(t, label);
  const DType dtype = dtype_of(t, label);
  const bool contiguous = is_contiguous(t), dense = contiguous || is_dense(t);
  if (!dense && access == Access::kWrite) check_writable(t, label);
  return {t, dtype, numel_of(t), contiguous, dense};
}

void add_row(Capture& out, Extents& extents, const RowInput& in, size_t index, const py::object& names) {
  const Label ema_label{in.is_direct ? "retain_grads" : "ema", index, &names, in.id};
  const Access ema_access = in.is_direct ? Access::kRead : Access::kWrite;
  TensorList::View looked_at;
  if (in.known_ema == nullptr) looked_at = view_ema(in.ema, ema_label, ema_access);
  const TensorList::View& ema = in.known_ema != nullptr ? *in.known_ema : looked_at;
  if (index == 0) out.device = ema.tensor.device;
  check_same_device(ema.tensor, ema_label, out.device);
  extents.add(ema.tensor, ema.numel, ema.dense, ema_access, ema_label);

  Row row{nullptr, nullptr, ema.tensor.data, ema.numel, 0, in.rounding_key, in.ema_is_current};
  Kind kind{ema.dtype, ema.dtype};
  bool alike = ema.dense;
  const char* first_list = nullptr;
  const auto add_grad = [&](py::handle object, const char* list, Access access) -> void* {
    if (object.is_none()) return nullptr;
    const Label label{list, index, &names, in.id};
    const dlpack::Tensor t = view_checked(object, label);
    const DType dtype = dtype_of(t, label);
    check_like(t, label,
               in.is_direct ? Anchor{ema.tensor, "its retain gradient", "move one of them"}
                            : Anchor{ema.tensor, "its EMA", "move one of them (RetainEMA.to(device))"});
    if (first_list != nullptr && dtype != kind.grad) {
      type_error(label, std::string("expected the dtype of ") + first_list + "[" + std::to_string(in.id) + "], got " +
                            dtype_name(t.dtype) + "; both are gradients of one parameter");
    }
    if (ema.dtype != DType::kFloat32 && ema.dtype != dtype) {
      type_error(ema_label, "expected float32 or the gradient's " + dtype_name(t.dtype) + ", got " +
                                dtype_name(ema.tensor.dtype) +
                                (in.is_direct ? "" : "; pass dtype=torch.float32 or None to RetainEMA"));
    }
    first_list = list;
    kind.grad = dtype;
    const bool contiguous = is_contiguous(t);
    alike = alike && (contiguous == ema.contiguous) && (contiguous || same_strides(t, ema.tensor));
    if (!contiguous && access == Access::kWrite) check_writable(t, label);
    extents.add(t, ema.numel, contiguous || is_dense(t), access, label);
    return t.data;
  };
  row.grad = add_grad(in.grad, "grads", Access::kWrite);
  if (in.grad.is_none()) out.missing_grads.push_back(index);
  row.retain = add_grad(in.retain, "retain_grads", Access::kRead);
  if (!alike && row.numel > 0) out.mismatched_layouts.push_back(index);
  out.rows.push_back(row);
  out.kinds.push_back(kind);
}

// A list of small numbers, one for each row, that may be left out.
class Numbers {
 public:
  Numbers(const py::object& list, const char* what, size_t count)
      : items_(list.is_none() ? py::object(py::tuple()) : list, what), what_(what), is_given_(!list.is_none()) {
    if (is_given_) check_length(items_.size(), count, what);
  }
  // `otherwise` without a list.
  uint32_t at(size_t i, uint32_t otherwise) const {
    if (!is_given_) return otherwise;
    const auto number = items_[i].cast<int64_t>();
    if (number < 0 || number > kMaxRoundingKey) {
      throw py::value_error(std::string(what_) + "[" + std::to_string(i) + "]: expected a number from 0 to " +
                            std::to_string(kMaxRoundingKey) + ", got " + std::to_string(number));
    }
    return static_cast<uint32_t>(number);
  }

 private:
  Items items_;
  const char* what_;
  bool is_given_;
};

}  // namespace

dlpack::Tensor view_of(py::handle tensor) { return view_checked(tensor, Label{"tensor", 0, nullptr}); }

void* current_stream(int device_id) {
  void* stream = nullptr;
  if (known_api() == nullptr || known_api()->current_work_stream(dlpack::kCUDA, device_id, &stream) != 0) {
    throw py::error_already_set();
  }
  return stream;
}

void* helper_pointer(py::handle tensor, const char* what, uint8_t code, uint8_t bits, int64_t min_numel,
                     dlpack::Device device) {
  const dlpack::Tensor t = view_of(tensor);
  const bool aligned = reinterpret_cast<uintptr_t>(t.data) % 8 == 0;  // doubles and 64-bit integers go there
  const bool fits = aligned && t.dtype.code == code && t.dtype.bits == bits && numel_of(t) >= min_numel &&
                    is_contiguous(t) && t.device.type == device.type && t.device.id == device.id;
  if (!fits) {
    throw py::value_error(std::string(what) + ": expected at least " + std::to_string(min_numel) + " contiguous " +
                          dtype_name({code, bits, 1}) + " on " + device_name(device) + ", got " + shape_name(t) + " " +
                          dtype_name(t.dtype) + " on " + device_name(t.device) +
                          (aligned ? "" : ", not aligned to 8 bytes"));
  }
  return t.data;
}

TensorList::TensorList(const py::sequence& tensors) : tensors_(tensors) {
  views_.reserve(tensors_.size());
  for (size_t i = 0; i < tensors_.size(); ++i) views_.push_back(view_ema(tensors_[i], Label{"ema", i, nullptr}));
}

Capture capture(py::sequence grads, py::object retain, py::object ema, py::object ema_is_current, py::object ids,
                py::object names, py::object rounding_keys, bool is_direct) {
  const TensorList* known_ema = py::isinstance<TensorList>(ema) ? ema.cast<const TensorList*>() : nullptr;
  const Items grad_items(grads, "grads"), ema_items(known_ema != nullptr ? py::object(py::tuple()) : ema, "ema");
  const size_t count = known_ema != nullptr ? known_ema->size() : ema_items.size();
  check_length(grad_items.size(), count, "grads");
  const bool has_retain = !retain.is_none(), per_row = !py::isinstance<py::bool_>(ema_is_current);
  const Items retain_items(has_retain ? retain : py::object(py::tuple()), "retain_grads");
  const Numbers id_of(ids, "ids", count), key_of(rounding_keys, "rounding_keys", count);
  const Items current_items(per_row ? ema_is_current : py::object(py::tuple()), "ema_is_current");
  if (has_retain) check_length(retain_items.size(), count, "retain_grads");
  if (per_row) check_length(current_items.size(), count, "ema_is_current");

  Capture out;
  out.device = {dlpack::kCPU, 0};
  out.rows.reserve(count);
  out.kinds.reserve(count);
  Extents extents(3 * count);
  for (size_t i = 0; i < count; ++i) {
    const bool current = per_row ? current_items[i].ptr() == Py_True : ema_is_current.ptr() == Py_True;
    const uint32_t id = id_of.at(i, static_cast<uint32_t>(i));
    const RowInput input{grad_items[i],
                         has_retain ? retain_items[i] : py::handle(Py_None),
                         known_ema != nullptr ? py::handle() : ema_items[i],
                         known_ema != nullptr ? &(*known_ema)[i] : nullptr,
                         current || is_direct,
                         is_direct,
                         id,
                         key_of.at(i, id)};
    add_row(out, extents, input, i, names);
  }
  extents.check(names);
  return out;
}

}  // namespace gru_fast
