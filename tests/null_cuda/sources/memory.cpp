// Memory: allocations of the device and pinned memory of the host, copies between them.
#include "device.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

using namespace null_cuda;

namespace {

struct Block {
  size_t bytes;
  Location location;
  bool is_ours;  // rather than registered by the caller
};

struct Memory {
  std::map<const char *, Block> blocks;
  size_t used[MOST_DEVICES] = {}, peak[MOST_DEVICES] = {};
};

Memory &memory() {
  static Memory *it = new Memory;
  return *it;
}

size_t device_bytes() {
  static size_t bytes = static_cast<size_t>(number_from("NULL_CUDA_GIB", 80) * (1ull << 30));
  return bytes;
}

// Returns the memory that an address lies in, or the end.
std::map<const char *, Block>::iterator block_of(const void *address) {
  auto &blocks = memory().blocks;
  auto block = blocks.upper_bound(static_cast<const char *>(address));
  if (block == blocks.begin()) return blocks.end();
  --block;
  return static_cast<const char *>(address) < block->first + block->second.bytes ? block : blocks.end();
}

void *map_memory(size_t bytes) {
  // Takes no memory before it is touched, and is all zeros then.
  void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? nullptr : memory;
}

cudaError_t release(void *address, Place place, const char *name) {
  if (!address) return cudaSuccess;
  LEAVE_ON_ERROR(refuse_unsafe(name));
  Lock lock(mutex());
  auto block = memory().blocks.find(static_cast<const char *>(address));
  if (block == memory().blocks.end() || block->second.location.place != place) return fail(cudaErrorInvalidValue);
  if (block->second.is_ours) munmap(address, block->second.bytes);
  if (place == Place::device) memory().used[block->second.location.device] -= block->second.bytes;
  memory().blocks.erase(block);
  note(Kind::allocation, name);
  return cudaSuccess;
}

}  // namespace

Location null_cuda::locate(const void *address) {
  Lock lock(mutex());
  auto block = block_of(address);
  return block == memory().blocks.end() ? Location{Place::pageable, 0} : block->second.location;
}


ENTRY cudaError_t cudaMalloc(void **address, size_t bytes) {
  constexpr size_t page = 2u << 20;
  LEAVE_ON_ERROR(refuse_unsafe("cudaMalloc"));
  *address = nullptr;
  if (bytes == 0) return cudaSuccess;
  Lock lock(mutex());
  auto &used = memory().used[current_device], &peak = memory().peak[current_device];
  const size_t rounded = (bytes + page - 1) / page * page;
  void *mapped = used + rounded <= device_bytes() ? map_memory(rounded) : nullptr;
  if (!mapped) {
    note(Kind::allocation, "cudaMalloc, out of memory", nullptr, bytes);
    return fail(cudaErrorMemoryAllocation);
  }
  used += rounded;
  peak = std::max(peak, used);
  memory().blocks[static_cast<char *>(mapped)] = {rounded, {Place::device, current_device}, true};
  note(Kind::allocation, "cudaMalloc", nullptr, bytes);
  *address = mapped;
  return cudaSuccess;
}

ENTRY cudaError_t cudaFree(void *address) { return release(address, Place::device, "cudaFree"); }

ENTRY cudaError_t cudaMallocAsync(void **address, size_t bytes, cudaStream_t) { return cudaMalloc(address, bytes); }

ENTRY cudaError_t cudaFreeAsync(void *address, cudaStream_t) { return cudaFree(address); }

ENTRY cudaError_t cudaHostAlloc(void **address, size_t bytes, unsigned) {
  LEAVE_ON_ERROR(refuse_unsafe("cudaHostAlloc"));
  Lock lock(mutex());
  void *mapped = map_memory(std::max<size_t>(bytes, 1));
  if (!mapped) return fail(cudaErrorMemoryAllocation);
  memory().blocks[static_cast<char *>(mapped)] = {std::max<size_t>(bytes, 1), {Place::pinned, 0}, true};
  note(Kind::allocation, "cudaHostAlloc", nullptr, bytes);
  *address = mapped;
  return cudaSuccess;
}

ENTRY cudaError_t cudaFreeHost(void *address) { return release(address, Place::pinned, "cudaFreeHost"); }

ENTRY cudaError_t cudaHostRegister(void *address, size_t bytes, unsigned) {
  LEAVE_ON_ERROR(refuse_unsafe("cudaHostRegister"));
  Lock lock(mutex());
  memory().blocks[static_cast<char *>(address)] = {bytes, {Place::pinned, 0}, false};
  note(Kind::allocation, "cudaHostRegister", nullptr, bytes);
  return cudaSuccess;
}

ENTRY cudaError_t cudaHostUnregister(void *address) { return release(address, Place::pinned, "cudaHostUnregister"); }

ENTRY cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
  *total = device_bytes();
  *free = *total - memory().used[current_device];
  return cudaSuccess;
}

ENTRY cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *address) {
  const Location location = locate(address);
  memset(attributes, 0, sizeof *attributes);
  attributes->device = location.device;
  attributes->type = location.place == Place::device   ? cudaMemoryTypeDevice
                     : location.place == Place::pinned ? cudaMemoryTypeHost
                                                       : cudaMemoryTypeUnregistered;
  if (location.place != Place::pageable) attributes->devicePointer = const_cast<void *>(address);
  if (location.place != Place::device) attributes->hostPointer = const_cast<void *>(address);
  return cudaSuccess;
}


ENTRY size_t null_cuda_used(int device) {
  Lock lock(mutex());
  return memory().used[device];
}

ENTRY size_t null_cuda_peak(int device) {
  Lock lock(mutex());
  return memory().peak[device];
}

ENTRY void null_cuda_reset_peak() {
  Lock lock(mutex());
  std::copy(std::begin(memory().used), std::end(memory().used), std::begin(memory().peak));
}

// Copies. Small ones really happen, unless they are captured: what the host wrote is what it reads back.

static const char *direction(const void *to, const void *from) {
  const Location target = locate(to), source = locate(from);
  if (target.place == Place::device && source.place == Place::device)
    return target.device == source.device ? "D2D" : "device to device";
  if (target.place == Place::device) return source.place == Place::pinned ? "H2D pinned" : "H2D pageable";
  if (source.place == Place::device) return target.place == Place::pinned ? "D2H pinned" : "D2H pageable";
  return "H2H";
}

static cudaError_t copy(void *to, const void *from, size_t bytes, cudaStream_t stream) {
  const char *name = direction(to, from);
  if (is_captured(stream)) {
    if (strstr(name, "pageable"))
      return violate("a copy of pageable memory in a capture", cudaErrorStreamCaptureUnsupported, stream);
  } else if (bytes <= MOVED_BYTES) {
    memmove(to, from, bytes);
  }
  return work(Kind::copy, name, stream, bytes);
}

ENTRY cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind) {
  LEAVE_ON_ERROR(refuse_unsafe("cudaMemcpy"));
  note(Kind::sync, "cudaMemcpy");
  return copy(to, from, bytes, nullptr);
}

ENTRY cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return copy(to, from, bytes, stream);
}

ENTRY cudaError_t cudaMemcpyPeerAsync(void *to, int, const void *from, int, size_t bytes, cudaStream_t stream) {
  return copy(to, from, bytes, stream);
}

ENTRY cudaError_t cudaMemcpy2DAsync(void *to, size_t, const void *from, size_t, size_t width, size_t height,
                                    cudaMemcpyKind, cudaStream_t stream) {
  return work(Kind::copy, direction(to, from), stream, width * height);
}

ACCEPTS(cudaError_t, cudaMemcpyToSymbol, (const void *, const void *, size_t, size_t, cudaMemcpyKind))

ENTRY cudaError_t cudaMemsetAsync(void *address, int value, size_t bytes, cudaStream_t stream) {
  if (!is_captured(stream) && bytes <= MOVED_BYTES) memset(address, value, bytes);
  return work(Kind::set, "memset", stream, bytes);
}

ENTRY cudaError_t cudaMemset(void *address, int value, size_t bytes) {
  LEAVE_ON_ERROR(refuse_unsafe("cudaMemset"));
  return cudaMemsetAsync(address, value, bytes, nullptr);
}

ENTRY cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int) {
  *pool = nullptr;
  return cudaSuccess;
}

ACCEPTS(cudaError_t, cudaMemPoolSetAttribute, (cudaMemPool_t, cudaMemPoolAttr, void *))
ACCEPTS(cudaError_t, cudaIpcCloseMemHandle, (void *))
