// Work over the threads that PyTorch already has.
#pragma once

#include <cstdint>
#include <functional>

namespace gru_fast::cpu {

// Calls body(begin, end) over [0, count) in pieces of at most `grain`, handed out in order to `num_threads` threads as
// they come free. Which thread gets which piece is not fixed: results must go to slots of their own.
void parallel_for(int64_t count, int64_t grain, int num_threads, const std::function<void(int64_t, int64_t)>& body);

// "OpenMP of the process" or "std::thread".
const char* thread_source();

}  // namespace gru_fast::cpu
