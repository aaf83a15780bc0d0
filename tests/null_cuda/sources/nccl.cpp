// NCCL between processes of one machine, through shared memory.
//
// Values of up to MOVED_BYTES really travel, so that what processes agree on is real; larger ones stay as they are.
// Everybody waits for everybody else on the host, at the call; a process that never comes makes the others fail.
#include "device.hpp"

#include <fcntl.h>
#include <nccl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <vector>

using namespace null_cuda;

namespace {

constexpr int MOST_PROCESSES = 16;
constexpr int LONGEST_WAIT_SECONDS = 120;
constexpr int WAIT_MICROSECONDS = 50;

struct Shared {
  std::atomic<int> arrived, round;                                // of the barrier
  std::atomic<int> is_full[MOST_PROCESSES][MOST_PROCESSES];       // letters from one to another
  char values[MOST_PROCESSES][MOVED_BYTES];                       // of a collective
  char letters[MOST_PROCESSES][MOST_PROCESSES][MOVED_BYTES];      // pages are taken when they are touched
};

struct Communicator {
  int rank, world;
  Shared *shared;
};

Communicator *of(ncclComm_t handle) { return reinterpret_cast<Communicator *>(handle); }

template <class Condition>
bool wait_until(Condition condition) {
  for (long waits = 0; !condition(); ++waits) {
    if (waits > LONGEST_WAIT_SECONDS * 1000000L / WAIT_MICROSECONDS) return false;
    usleep(WAIT_MICROSECONDS);
  }
  return true;
}

bool meet(const Communicator &all) {
  Shared &shared = *all.shared;
  const int round = shared.round;
  if (++shared.arrived == all.world) {
    shared.arrived = 0;
    ++shared.round;
    return true;
  }
  return wait_until([&] { return shared.round != round; });
}

// Notes a collective; captured, it is a node and nothing else.
struct Collective {
  Communicator &all;
  size_t bytes;
  bool is_moved;
  ncclResult_t result;

  Collective(const char *name, ncclComm_t handle, size_t bytes_of_one, cudaStream_t stream)
      : all(*of(handle)), bytes(bytes_of_one), is_moved(bytes_of_one <= MOVED_BYTES && !is_captured(stream)) {
    result = work(Kind::collective, name, stream, bytes) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
    if (is_captured(stream)) is_moved = false;
  }

  char *value_of(int rank) { return all.shared->values[rank]; }
  bool meet_all() { return meet(all); }
};

size_t width_of(ncclDataType_t type) {
  switch (type) {
    case ncclInt8: case ncclUint8: return 1;
    case ncclFloat16: case ncclBfloat16: return 2;
    case ncclInt32: case ncclUint32: case ncclFloat32: return 4;
    case ncclInt64: case ncclUint64: case ncclFloat64: return 8;
    default: return 1;
  }
}

template <class Number>
void reduce(Collective &collective, void *result, ncclRedOp_t operation) {
  const size_t count = collective.bytes / sizeof(Number);
  auto *total = static_cast<Number *>(result);
  for (int rank = 0; rank < collective.all.world; ++rank) {
    const auto *value = reinterpret_cast<const Number *>(collective.value_of(rank));
    for (size_t at = 0; at < count; ++at) {
      if (rank == 0) total[at] = value[at];
      else if (operation == ncclMax) total[at] = std::max(total[at], value[at]);
      else if (operation == ncclMin) total[at] = std::min(total[at], value[at]);
      else total[at] += value[at];
    }
  }
  if (operation == ncclAvg)
    for (size_t at = 0; at < count; ++at) total[at] /= static_cast<Number>(collective.all.world);
}

ncclResult_t begin(ncclComm_t *handle, int world, const ncclUniqueId &id, int rank) {
  if (world > MOST_PROCESSES) return ncclInvalidArgument;
  const int file = shm_open(id.internal, O_CREAT | O_RDWR, 0600);
  if (file < 0 || ftruncate(file, sizeof(Shared)) != 0) return ncclSystemError;
  void *memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
  close(file);
  if (memory == MAP_FAILED) return ncclSystemError;
  auto *all = new Communicator{rank, world, static_cast<Shared *>(memory)};  // all zeros: nobody has arrived
  const bool is_complete = meet(*all);
  if (rank == 0) shm_unlink(id.internal);
  *handle = reinterpret_cast<ncclComm_t>(all);
  return is_complete ? ncclSuccess : ncclSystemError;
}

// Letters between two processes. Inside a group all are sent before any is waited for.
struct Letter {
  Communicator *all;
  const void *sent;  // nullptr: to be received
  void *received;
  size_t bytes;
  int peer;
};

thread_local int group_depth = 0;
thread_local std::vector<Letter> group;

ncclResult_t exchange() {
  for (const Letter &letter : group) {
    if (!letter.sent) continue;
    auto &is_full = letter.all->shared->is_full[letter.all->rank][letter.peer];
    if (!wait_until([&] { return !is_full; })) return ncclSystemError;
    memcpy(letter.all->shared->letters[letter.all->rank][letter.peer], letter.sent, std::min(letter.bytes, MOVED_BYTES));
    is_full = 1;
  }
  for (const Letter &letter : group) {
    if (letter.sent) continue;
    auto &is_full = letter.all->shared->is_full[letter.peer][letter.all->rank];
    if (!wait_until([&] { return is_full == 1; })) return ncclSystemError;
    memcpy(letter.received, letter.all->shared->letters[letter.peer][letter.all->rank],
           std::min(letter.bytes, MOVED_BYTES));
    is_full = 0;
  }
  group.clear();
  return ncclSuccess;
}

ncclResult_t post(const char *name, const Letter &letter, cudaStream_t stream) {
  if (work(Kind::collective, name, stream, letter.bytes) != cudaSuccess) return ncclUnhandledCudaError;
  group.push_back(letter);
  return group_depth ? ncclSuccess : exchange();
}

}  // namespace

ENTRY ncclResult_t ncclGetVersion(int *version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}

ENTRY ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
  static int made = 0;
  memset(id, 0, sizeof *id);
  snprintf(id->internal, sizeof id->internal, "/null_cuda_%d_%d", getpid(), ++made);
  return ncclSuccess;
}

ENTRY ncclResult_t ncclCommInitRank(ncclComm_t *handle, int world, ncclUniqueId id, int rank) {
  return begin(handle, world, id, rank);
}

ENTRY ncclResult_t ncclCommInitRankConfig(ncclComm_t *handle, int world, ncclUniqueId id, int rank, ncclConfig_t *) {
  return begin(handle, world, id, rank);
}

ENTRY ncclResult_t ncclCommInitRankScalable(ncclComm_t *handle, int world, int rank, int, ncclUniqueId *ids,
                                            ncclConfig_t *) {
  return begin(handle, world, ids[0], rank);
}

ENTRY ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t *error) {
  *error = ncclSuccess;
  return ncclSuccess;
}

ENTRY ncclResult_t ncclCommCount(ncclComm_t handle, int *count) {
  *count = of(handle)->world;
  return ncclSuccess;
}

ENTRY ncclResult_t ncclCommUserRank(ncclComm_t handle, int *rank) {
  *rank = of(handle)->rank;
  return ncclSuccess;
}

ENTRY const char *ncclGetErrorString(ncclResult_t) { return "an error of the null CUDA's NCCL"; }

ENTRY const char *ncclGetLastError(ncclComm_t) { return "another process did not come, or does not match"; }

ACCEPTS(ncclResult_t, ncclCommDestroy, (ncclComm_t))
ACCEPTS(ncclResult_t, ncclCommFinalize, (ncclComm_t))
ACCEPTS(ncclResult_t, ncclCommAbort, (ncclComm_t))
ACCEPTS(ncclResult_t, ncclCommDeregister, (const ncclComm_t, void *))

ENTRY ncclResult_t ncclCommRegister(const ncclComm_t, void *, size_t, void **handle) {
  *handle = nullptr;
  return ncclSuccess;
}

ENTRY ncclResult_t ncclBroadcast(const void *sent, void *received, size_t count, ncclDataType_t type, int root,
                                 ncclComm_t handle, cudaStream_t stream) {
  Collective collective("ncclBroadcast", handle, count * width_of(type), stream);
  if (!collective.is_moved) return collective.result;
  if (collective.all.rank == root) memcpy(collective.value_of(root), sent, collective.bytes);
  if (!collective.meet_all()) return ncclSystemError;
  memcpy(received, collective.value_of(root), collective.bytes);
  return collective.meet_all() ? collective.result : ncclSystemError;
}

ENTRY ncclResult_t ncclBcast(void *value, size_t count, ncclDataType_t type, int root, ncclComm_t handle,
                             cudaStream_t stream) {
  return ncclBroadcast(value, value, count, type, root, handle, stream);
}

ENTRY ncclResult_t ncclAllReduce(const void *sent, void *received, size_t count, ncclDataType_t type,
                                 ncclRedOp_t operation, ncclComm_t handle, cudaStream_t stream) {
  Collective collective("ncclAllReduce", handle, count * width_of(type), stream);
  if (!collective.is_moved) return collective.result;
  memcpy(collective.value_of(collective.all.rank), sent, collective.bytes);
  if (!collective.meet_all()) return ncclSystemError;
  switch (type) {
    case ncclFloat32: reduce<float>(collective, received, operation); break;
    case ncclFloat64: reduce<double>(collective, received, operation); break;
    case ncclInt32: reduce<int>(collective, received, operation); break;
    case ncclInt64: reduce<long long>(collective, received, operation); break;
    default: memmove(received, sent, collective.bytes);  // nothing here is decided by such numbers
  }
  return collective.meet_all() ? collective.result : ncclSystemError;
}

ENTRY ncclResult_t ncclReduce(const void *sent, void *received, size_t count, ncclDataType_t type,
                              ncclRedOp_t operation, int root, ncclComm_t handle, cudaStream_t stream) {
  std::vector<char> unused(of(handle)->rank == root ? 0 : count * width_of(type));
  return ncclAllReduce(sent, of(handle)->rank == root ? received : unused.data(), count, type, operation, handle,
                       stream);
}

static ncclResult_t gather(const char *name, const void *sent, void *received, size_t bytes, ncclComm_t handle,
                           cudaStream_t stream) {
  Collective collective(name, handle, bytes, stream);
  if (!collective.is_moved) return collective.result;
  memcpy(collective.value_of(collective.all.rank), sent, bytes);
  if (!collective.meet_all()) return ncclSystemError;
  for (int rank = 0; received && rank < collective.all.world; ++rank)
    memcpy(static_cast<char *>(received) + static_cast<size_t>(rank) * bytes, collective.value_of(rank), bytes);
  return collective.meet_all() ? collective.result : ncclSystemError;
}

ENTRY ncclResult_t ncclAllGather(const void *sent, void *received, size_t count, ncclDataType_t type,
                                 ncclComm_t handle, cudaStream_t stream) {
  return gather("ncclAllGather", sent, received, count * width_of(type), handle, stream);
}

ENTRY ncclResult_t ncclGather(const void *sent, void *received, size_t count, ncclDataType_t type, int root,
                              ncclComm_t handle, cudaStream_t stream) {
  void *kept = of(handle)->rank == root ? received : nullptr;
  return gather("ncclGather", sent, kept, count * width_of(type), handle, stream);
}

ENTRY ncclResult_t ncclGroupStart() {
  ++group_depth;
  return ncclSuccess;
}

ENTRY ncclResult_t ncclGroupEnd() { return --group_depth ? ncclSuccess : exchange(); }

ENTRY ncclResult_t ncclSend(const void *value, size_t count, ncclDataType_t type, int peer, ncclComm_t handle,
                            cudaStream_t stream) {
  return post("ncclSend", {of(handle), value, nullptr, count * width_of(type), peer}, stream);
}

ENTRY ncclResult_t ncclRecv(void *value, size_t count, ncclDataType_t type, int peer, ncclComm_t handle,
                            cudaStream_t stream) {
  return post("ncclRecv", {of(handle), nullptr, value, count * width_of(type), peer}, stream);
}
