#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

namespace gru_fast::cpu {
namespace {

// PyTorch's wheels bring their own libgomp and load it for the whole process. A second OpenMP runtime, or threads of
// our own, would compete with its spinning workers for the same cores, so we borrow that one by its stable entry point.
using GompParallel = void (*)(void (*)(void*), void*, unsigned num_threads, unsigned flags);

GompParallel find_gomp_parallel() {
#if defined(__SANITIZE_THREAD__) || !(defined(__unix__) || defined(__APPLE__))
  return nullptr;
#else
  return reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#endif
}

GompParallel gomp_parallel() {
  static const GompParallel found = find_gomp_parallel();
  return found;
}

struct Job {
  std::atomic<int64_t> next{0};
  int64_t count;
  int64_t grain;
  const std::function<void(int64_t, int64_t)>* body;

  static void run(void* self) {
    Job& job = *static_cast<Job*>(self);
    for (;;) {
      const int64_t begin = job.next.fetch_add(job.grain, std::memory_order_relaxed);
      if (begin >= job.count) return;
      (*job.body)(begin, std::min(begin + job.grain, job.count));
    }
  }
};

}  // namespace

void parallel_for(int64_t count, int64_t grain, int num_threads, const std::function<void(int64_t, int64_t)>& body) {
  Job job{.count = count, .grain = std::max<int64_t>(grain, 1), .body = &body};
  const int64_t pieces = (count + job.grain - 1) / job.grain;
  const auto threads = static_cast<unsigned>(std::clamp<int64_t>(pieces, 1, std::max(num_threads, 1)));
  if (threads == 1) {
    body(0, count);
  } else if (gomp_parallel() != nullptr) {
    gomp_parallel()(Job::run, &job, threads, 0);
  } else {
    std::vector<std::thread> others;
    for (unsigned i = 1; i < threads; ++i) others.emplace_back(Job::run, &job);
    Job::run(&job);
    for (std::thread& other : others) other.join();
  }
}

const char* thread_source() { return gomp_parallel() != nullptr ? "OpenMP of the process" : "std::thread"; }

}  // namespace gru_fast::cpu
