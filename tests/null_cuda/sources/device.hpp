// What all parts of the null CUDA share: the record of calls, streams and their captures, memory.
//
// Work on a device takes no time and does nothing. A stream is therefore only a number and, while it is captured, a
// link to its capture; an event is the place in a capture, or the time of day, at which it was recorded.
#pragma once

#define __CUDA_API_VERSION_INTERNAL  // entry points by the names that they have in the library
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <map>
#include <mutex>
#include <set>
#include <string>

// An entry point of CUDA, and one that accepts whatever it is told.
#define ENTRY extern "C" __attribute__((visibility("default")))
#define ACCEPTS(result, name, parameters) \
  ENTRY result name parameters { return result(0); }

namespace null_cuda {

enum class Kind : int {
  // Work on a stream: a node, where the stream is captured.
  kernel, product, convolution, collective, copy, set,
  // Everything else.
  sync, event, allocation, plan, module, capture, graph, violation, count
};

struct Record {
  const char *name;
  unsigned long long amount;  // bytes of a copy, programs of a kernel, nodes of a graph
  Kind kind;
  int thread, stream, captured;
};

struct Stream;
using Clock = std::map<int, long>;  // by number of a stream, how many of its nodes come before

struct Capture {
  unsigned long long number;
  cudaStreamCaptureMode mode;
  int thread;  // that began it
  Stream *origin;
  std::set<Stream *> streams;
  size_t nodes;
  bool is_broken;  // by a call that is forbidden; its end fails
};

struct Stream {
  int number;
  unsigned flags;
  Capture *capture;
  Clock before;
};

enum class Place { pageable, pinned, device };
struct Location {
  Place place;
  int device;
};

constexpr int MOST_DEVICES = 16;
constexpr size_t MOVED_BYTES = 4u << 20;  // a larger piece of memory is never read or written, so it takes no memory

using Lock = std::lock_guard<std::recursive_mutex>;
std::recursive_mutex &mutex();

double number_from(const char *environment_variable, double usual);
int thread_number();
int device_count();
extern thread_local int current_device;
std::set<Capture *> &captures();  // that are going on

Location locate(const void *address);

// Returns the stream behind a handle, nullptr for the default ones.
Stream *stream_of(cudaStream_t handle);
bool is_captured(cudaStream_t handle);

// Returns the text itself, kept for ever: records hold its address.
const char *keep(const std::string &text);

// Remembers the error for cudaGetLastError, and returns it.
cudaError_t fail(cudaError_t error);

void note(Kind kind, const char *name, cudaStream_t stream = nullptr, unsigned long long amount = 0);
// Notes a violation and breaks the captures that it disturbs: that of the stream, or without one those in reach.
cudaError_t violate(const char *name, cudaError_t error, cudaStream_t stream = nullptr);
// Notes work, as a node where its stream is captured.
cudaError_t work(Kind kind, const char *name, cudaStream_t stream, unsigned long long amount = 0);
// Returns an error for a call that this thread must not make during the captures that are going on.
cudaError_t refuse_unsafe(const char *name);
// The same for a call that waits for the whole device.
cudaError_t refuse_wait(const char *name);
// Notes a launch, or says what is wrong with it.
cudaError_t launch(const char *name, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream);
// Returns an attribute of the device, which both runtime and driver are asked for.
int attribute_of_device(int attribute);

}  // namespace null_cuda

// Leaves the entry point with the error, if there is one.
#define LEAVE_ON_ERROR(call) \
  if (cudaError_t error = (call); error != cudaSuccess) return error
