// The part of DLPack 1.3 that we use, declared from its specification: how a Python tensor type lends us a view of one
// of its objects. torch >= 2.10 offers it as the type attribute `__dlpack_c_exchange_api__`, a capsule named
// "dlpack_exchange_api". Layout and names are DLPack's ABI; do not change them.
#pragma once

#include <cstdint>

namespace gru_fast::dlpack {

enum DeviceType : int32_t { kCPU = 1, kCUDA = 2, kCUDAHost = 3 };

struct Device {
  int32_t type;
  int32_t id;
};

enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBFloat = 4, kComplex = 5, kBool = 6 };

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null: row-major contiguous
  uint64_t byte_offset;
};

struct Version {
  uint32_t major;
  uint32_t minor;
};

struct ExchangeApi {
  Version version;
  ExchangeApi* previous;
  int (*managed_tensor_allocator)(Tensor*, void**, void*, void (*)(void*, const char*, const char*));
  int (*managed_tensor_from_py_object)(void*, void**);
  int (*managed_tensor_to_py_object)(void*, void**);
  int (*tensor_from_py_object)(void* object, Tensor* out);  // no ownership, no sync; may be null
  int (*current_work_stream)(DeviceType, int32_t device_id, void** stream);
};

inline constexpr uint32_t kMajorVersion = 1;
inline constexpr const char* kTypeAttribute = "__dlpack_c_exchange_api__";
inline constexpr const char* kCapsuleName = "dlpack_exchange_api";

}  // namespace gru_fast::dlpack
