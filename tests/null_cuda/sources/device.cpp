// The state of the null CUDA, and the functions by which Python reads it (null_cuda_*, see null_device.py).
#include "device.hpp"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace null_cuda {

namespace {

struct State {
  std::recursive_mutex mutex;
  bool is_recording = false;
  std::vector<Record> records;
  std::set<std::string> texts;
  std::set<Capture *> captures;
};

// Never destroyed: other libraries still call while the process ends.
State &state() {
  static State *it = new State;
  return *it;
}

thread_local cudaError_t last_error = cudaSuccess;
thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;

// Returns whether calls that are unsafe during this capture are forbidden to this thread.
bool forbids_unsafe(const Capture &capture) {
  if (capture_mode == cudaStreamCaptureModeRelaxed || capture.mode == cudaStreamCaptureModeRelaxed) return false;
  if (capture.thread == thread_number()) return true;
  return capture.mode == cudaStreamCaptureModeGlobal && capture_mode == cudaStreamCaptureModeGlobal;
}

}  // namespace

thread_local int current_device = 0;

double number_from(const char *variable, double usual) {
  const char *text = getenv(variable);
  return text ? atof(text) : usual;
}

std::recursive_mutex &mutex() { return state().mutex; }

std::set<Capture *> &captures() { return state().captures; }

int thread_number() {
  static thread_local int number = static_cast<int>(syscall(SYS_gettid));
  return number;
}

int device_count() {
  static int count = std::min(static_cast<int>(number_from("NULL_CUDA_DEVICES", 1)), MOST_DEVICES);
  return count;
}

Stream *stream_of(cudaStream_t handle) {
  const bool is_default = !handle || handle == cudaStreamLegacy || handle == cudaStreamPerThread;
  return is_default ? nullptr : reinterpret_cast<Stream *>(handle);
}

bool is_captured(cudaStream_t handle) {
  Lock lock(mutex());
  Stream *stream = stream_of(handle);
  return stream && stream->capture;
}

const char *keep(const std::string &text) {
  Lock lock(mutex());
  return state().texts.insert(text).first->c_str();
}

cudaError_t fail(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

void note(Kind kind, const char *name, cudaStream_t handle, unsigned long long amount) {
  Lock lock(mutex());
  if (!state().is_recording && kind != Kind::violation) return;
  Stream *stream = stream_of(handle);
  const bool captured = stream && stream->capture;
  state().records.push_back({name, amount, kind, thread_number(), stream ? stream->number : 0, captured});
}

cudaError_t violate(const char *name, cudaError_t error, cudaStream_t handle) {
  Lock lock(mutex());
  note(Kind::violation, name, handle);
  if (Stream *stream = stream_of(handle); stream && stream->capture) {
    stream->capture->is_broken = true;
  } else {
    for (Capture *capture : captures()) capture->is_broken |= forbids_unsafe(*capture);
  }
  return fail(error);
}

cudaError_t work(Kind kind, const char *name, cudaStream_t handle, unsigned long long amount) {
  Lock lock(mutex());
  Stream *stream = stream_of(handle);
  if (stream && stream->capture) {
    if (stream->capture->is_broken) return fail(cudaErrorStreamCaptureInvalidated);
    stream->capture->nodes++;
    stream->before[stream->number]++;
  } else if (!stream) {
    // Work on the default stream waits for all streams but those that say that they do not care.
    for (Capture *capture : captures())
      if (!(capture->origin->flags & cudaStreamNonBlocking)) {
        capture->is_broken = true;
        return violate(name, cudaErrorStreamCaptureImplicit);
      }
  }
  note(kind, name, handle, amount);
  return cudaSuccess;
}

cudaError_t refuse_unsafe(const char *name) {
  Lock lock(mutex());
  for (Capture *capture : captures())
    if (forbids_unsafe(*capture)) return violate(name, cudaErrorStreamCaptureUnsupported);
  return cudaSuccess;
}

cudaError_t refuse_wait(const char *name) {
  Lock lock(mutex());
  if (captures().empty()) return cudaSuccess;
  for (Capture *capture : captures()) capture->is_broken = true;
  return violate(name, cudaErrorStreamCaptureUnsupported);
}

cudaError_t launch(const char *name, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream) {
  const auto most = [](int attribute) { return static_cast<unsigned>(attribute_of_device(attribute)); };
  const size_t threads = size_t(block.x) * block.y * block.z;
  const bool is_possible = grid.x && grid.y && grid.z && grid.x <= most(CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X) &&
                           grid.y <= most(CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y) &&
                           grid.z <= most(CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z) && threads &&
                           threads <= most(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK) &&
                           shared_bytes <= most(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
  if (!is_possible) return violate(name, cudaErrorInvalidConfiguration, stream);
  return work(Kind::kernel, name, stream, 1ull * grid.x * grid.y * grid.z);
}

}  // namespace null_cuda

using namespace null_cuda;

ENTRY cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

ENTRY cudaError_t cudaPeekAtLastError() { return last_error; }

ENTRY cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *mode) {
  std::swap(*mode, capture_mode);
  return cudaSuccess;
}

// For Python

ENTRY void null_cuda_start() {
  Lock lock(mutex());
  state().records.clear();
  state().is_recording = true;
}

ENTRY void null_cuda_stop() {
  Lock lock(mutex());
  state().is_recording = false;
}

// Returns the number of records, and the first; they stay until the next start.
ENTRY size_t null_cuda_records(const Record **first) {
  Lock lock(mutex());
  *first = state().records.data();
  return state().records.size();
}

// Returns nullptr after the last kind.
ENTRY const char *null_cuda_kind(int kind) {
  static const char *names[] = {"kernel", "product", "convolution", "collective", "copy",    "set",   "sync",
                                "event",  "allocation", "plan", "module",         "capture", "graph", "violation"};
  static_assert(sizeof names / sizeof *names == static_cast<size_t>(Kind::count));
  return kind < static_cast<int>(Kind::count) ? names[kind] : nullptr;
}

// For entry points that nobody has written: missing.cpp, which the build writes, has one for each that PyTorch knows.
ENTRY int null_cuda_missing(const char *name) {
  fprintf(stderr, "null CUDA: %s does nothing yet and failed; add it to tests/null_cuda/sources\n", name);
  return 1;
}
