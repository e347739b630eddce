// As much of the CUDA runtime and of CUDA C++ as csrc/cuda uses, on the CPU. An ordinary C++ compiler that finds this
// header before NVIDIA's compiles the kernels as they are; emulator.cpp runs them. A kernel that needs another builtin
// of CUDA gets it here.
//
// What is not emulated: weak memory (fences and atomics are sequentially consistent), streams, graphs, several devices.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "emulator.h"

// ---- the language ---------------------------------------------------------------------------------------------------

#define CUDART_VERSION 13000
#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static thread_local  // a block is a thread of the CPU

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Of the thread that runs, whenever they are read.
inline constexpr struct {
  struct {
    operator unsigned() const { return emulator::thread_x; }
  } x;
} threadIdx;
inline constexpr struct {
  struct {
    operator unsigned() const { return emulator::block_x; }
  } x;
} blockIdx;
inline constexpr struct {
  struct {
    operator unsigned() const { return emulator::num_blocks; }
  } x;
} gridDim;

inline uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }

// ---- memory ---------------------------------------------------------------------------------------------------------
// Before each access others may run. csrc/cuda assumes of every address that it reads or writes that it is in global
// memory, which makes the assumption a place to do that.

#define __builtin_assume(what) static_cast<void>(what)
inline bool __isGlobal(const void*) {
  emulator::maybe_yield();
  return true;
}

template <class T>
T __ldcs(const T* from) {
  emulator::maybe_yield();
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  emulator::maybe_yield();
  return *from;
}
template <class T>
void __stcs(T* to, T value) {
  emulator::maybe_yield();
  *to = value;
}

inline void __threadfence() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  emulator::maybe_yield();
}

// Between a block's own stores and its atomics, and after them, is where another block hurts most.
template <class T>
T atomicAdd(T* to, T value) {
  emulator::hand_over();
  const T before = *to;
  *to = before + value;
  emulator::hand_over();
  return before;
}
template <class T>
T atomicOr(T* to, T value) {
  emulator::hand_over();
  const T before = *to;
  *to = before | value;
  emulator::hand_over();
  return before;
}
template <class T>
T atomicExch(T* to, T value) {
  emulator::hand_over();
  const T before = *to;
  *to = value;
  emulator::hand_over();
  return before;
}

// ---- threads of a block and lanes of a warp -------------------------------------------------------------------------
// noinline: the return address is the place in the kernel, which all threads must share.

__attribute__((noinline)) inline void __syncthreads() { emulator::barrier(__builtin_return_address(0)); }

template <class T>
__attribute__((noinline)) T __shfl_down_sync(unsigned mask, T value, int distance) {
  const int lane = static_cast<int>(emulator::thread_x % emulator::kWarp);
  const int from = lane + distance < static_cast<int>(emulator::kWarp) ? lane + distance : lane;
  return emulator::exchange(mask, value, from, __builtin_return_address(0));
}
template <class T>
__attribute__((noinline)) T __shfl_xor_sync(unsigned mask, T value, int with) {
  const int lane = static_cast<int>(emulator::thread_x % emulator::kWarp);
  return emulator::exchange(mask, value, lane ^ with, __builtin_return_address(0));
}
template <class T>
__attribute__((noinline)) T __shfl_sync(unsigned mask, T value, int from) {
  return emulator::exchange(mask, value, from, __builtin_return_address(0));
}

// ---- arithmetic -----------------------------------------------------------------------------------------------------

// Byte i of the result is byte (selector's hex digit i) of the eight bytes of x and y.
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) out |= static_cast<uint32_t>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return out;
}

// ---- the runtime ----------------------------------------------------------------------------------------------------

enum cudaError_t {
  cudaSuccess,
  cudaErrorInsufficientDriver,
  cudaErrorAssert,
  cudaErrorHardwareStackError,
  cudaErrorIllegalAddress,
  cudaErrorIllegalInstruction,
  cudaErrorInvalidAddressSpace,
  cudaErrorInvalidPc,
  cudaErrorLaunchFailure,
  cudaErrorLaunchTimeout,
  cudaErrorMisalignedAddress,
};
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
using cudaStream_t = void*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorName(cudaError_t) { return "emulated"; }
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;  // none for torch's CUDA tensors: what is emulated serves those of the CPU
  return cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = static_cast<int>(emulator::num_multiprocessors());
  return cudaSuccess;
}
inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  *blocks = 4;
  return cudaSuccess;
}

// Runs the kernel before it returns: a stream with nobody else in it. There is no memset on it: passes need none.
template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  emulator::note({config->gridDim.x, (sizeof(std::remove_cvref_t<Params>) + ... + 0)});
  emulator::launch(config->gridDim.x, config->blockDim.x, [&] { kernel(args...); });
  return cudaSuccess;
}
