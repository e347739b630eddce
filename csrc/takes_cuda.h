// Whether the sources of csrc/cuda serve a device. In a build for their tests they run on the CPU.
#pragma once

#include "dlpack_abi.h"
#ifdef GRU_FAST_EMULATE
#include "emulator.h"
#endif

namespace gru_fast {

inline bool takes_cuda(dlpack::Device device) {
#ifdef GRU_FAST_EMULATE
  return emulator::is_on() && device.type == dlpack::kCPU;
#else
  return device.type == dlpack::kCUDA;
#endif
}

}  // namespace gru_fast
