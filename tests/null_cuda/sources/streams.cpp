// Streams, events, captures and graphs.
//
// A capture keeps the order of its nodes: each stream knows how many nodes of each stream come before its next one.
// Waiting for an event takes over what came before it; work that its origin never waited for makes the end fail.
#include "device.hpp"

#include <time.h>

#include <algorithm>

using namespace null_cuda;

namespace {

struct Event {
  bool is_recorded;
  double seconds;
  unsigned long long capture;  // its number, 0 outside of one
  Clock before;
};

struct Graph {
  size_t nodes;
};

double seconds_now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

cudaError_t make_stream(cudaStream_t *handle, unsigned flags) {
  static int made = 0;
  Lock lock(mutex());
  *handle = reinterpret_cast<cudaStream_t>(new Stream{++made, flags, nullptr, {}});
  return cudaSuccess;
}

Event *event_of(cudaEvent_t handle) { return reinterpret_cast<Event *>(handle); }

Graph *graph_of(void *handle) { return reinterpret_cast<Graph *>(handle); }

Capture *capture_with(unsigned long long number) {
  for (Capture *capture : captures())
    if (capture->number == number) return capture;
  return nullptr;
}

cudaError_t refuse_captured(const Event &event, const char *name) {
  return event.capture ? violate(name, cudaErrorCapturedEvent) : refuse_unsafe(name);
}

bool has_joined(const Stream &stream, Stream &origin) {
  const auto own = stream.before.find(stream.number);
  return own == stream.before.end() || origin.before[stream.number] >= own->second;
}

}  // namespace

// Streams

ENTRY cudaError_t cudaStreamCreate(cudaStream_t *handle) { return make_stream(handle, cudaStreamDefault); }

ENTRY cudaError_t cudaStreamCreateWithFlags(cudaStream_t *handle, unsigned flags) { return make_stream(handle, flags); }

ENTRY cudaError_t cudaStreamCreateWithPriority(cudaStream_t *handle, unsigned flags, int) {
  return make_stream(handle, flags);
}

ENTRY cudaError_t cudaStreamGetPriority(cudaStream_t, int *priority) {
  *priority = 0;
  return cudaSuccess;
}

ACCEPTS(cudaError_t, cudaStreamDestroy, (cudaStream_t))  // those of PyTorch live as long as the process

ENTRY cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (is_captured(stream)) return violate("cudaStreamSynchronize", cudaErrorStreamCaptureUnsupported, stream);
  LEAVE_ON_ERROR(refuse_unsafe("cudaStreamSynchronize"));
  note(Kind::sync, "cudaStreamSynchronize", stream);
  return cudaSuccess;
}

ENTRY cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (is_captured(stream)) return violate("cudaStreamQuery", cudaErrorStreamCaptureUnsupported, stream);
  LEAVE_ON_ERROR(refuse_unsafe("cudaStreamQuery"));
  note(Kind::event, "cudaStreamQuery", stream);
  return cudaSuccess;
}

ENTRY cudaError_t cudaDeviceSynchronize() {
  LEAVE_ON_ERROR(refuse_wait("cudaDeviceSynchronize"));
  note(Kind::sync, "cudaDeviceSynchronize");
  return cudaSuccess;
}

// All work before it is done, so a function of the host is called at once.
ENTRY cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t callback, void *data, unsigned) {
  if (is_captured(stream)) return violate("cudaStreamAddCallback", cudaErrorStreamCaptureUnsupported, stream);
  callback(stream, cudaSuccess, data);
  return cudaSuccess;
}

ENTRY cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
  if (!is_captured(stream)) function(data);
  return work(Kind::kernel, "a function of the host", stream);
}

// Events

ENTRY cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(new Event{false, 0, 0, {}});
  return cudaSuccess;
}

ENTRY cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

ENTRY cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event_of(event);
  return cudaSuccess;
}

ENTRY cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t stream_handle, unsigned) {
  Lock lock(mutex());
  const Stream *stream = stream_of(stream_handle);
  const bool is_inside = stream && stream->capture;
  *event_of(handle) = {true, seconds_now(), is_inside ? stream->capture->number : 0, is_inside ? stream->before : Clock()};
  note(Kind::event, "record", stream_handle);
  return cudaSuccess;
}

ENTRY cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, 0);
}

ENTRY cudaError_t cudaEventQuery(cudaEvent_t event) {
  LEAVE_ON_ERROR(refuse_captured(*event_of(event), "cudaEventQuery"));
  note(Kind::event, "cudaEventQuery");
  return cudaSuccess;
}

ENTRY cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  LEAVE_ON_ERROR(refuse_captured(*event_of(event), "cudaEventSynchronize"));
  note(Kind::sync, "cudaEventSynchronize");
  return cudaSuccess;
}

ENTRY cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t first, cudaEvent_t last) {
  const Event &start = *event_of(first), &end = *event_of(last);
  if (!start.is_recorded || !end.is_recorded) return fail(cudaErrorInvalidResourceHandle);
  *milliseconds = static_cast<float>((end.seconds - start.seconds) * 1000);
  return cudaSuccess;
}

ENTRY cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle, unsigned) {
  Lock lock(mutex());
  Stream *stream = stream_of(handle);
  const Event &event = *event_of(event_handle);
  note(Kind::event, "wait", handle);
  if (!event.is_recorded) return cudaSuccess;
  if (!event.capture)
    return stream && stream->capture
               ? violate("a captured stream waits for an event from outside", cudaErrorStreamCaptureIsolation, handle)
               : cudaSuccess;
  Capture *capture = capture_with(event.capture);
  if (!capture || !stream) return violate("a wait for an event of a capture", cudaErrorCapturedEvent, handle);
  if (stream->capture && stream->capture != capture)
    return violate("a wait for an event of another capture", cudaErrorStreamCaptureMerge, handle);
  if (!stream->capture) {
    stream->capture = capture;
    stream->before.clear();
    capture->streams.insert(stream);
  }
  for (const auto &[number, nodes] : event.before) stream->before[number] = std::max(stream->before[number], nodes);
  return cudaSuccess;
}

// Captures

ENTRY cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  static unsigned long long begun = 0;
  Lock lock(mutex());
  Stream *stream = stream_of(handle);
  if (!stream) return violate("a capture of the default stream", cudaErrorStreamCaptureUnsupported);
  if (stream->capture) return violate("a capture inside a capture", cudaErrorIllegalState, handle);
  stream->capture = new Capture{++begun, mode, thread_number(), stream, {stream}, 0, false};
  stream->before.clear();
  captures().insert(stream->capture);
  note(Kind::capture, "begin", handle);
  return cudaSuccess;
}

ENTRY cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t handle, cudaGraph_t, const cudaGraphNode_t *,
                                                const cudaGraphEdgeData *, size_t, cudaStreamCaptureMode mode) {
  return cudaStreamBeginCapture(handle, mode);
}

ENTRY cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *graph) {
  Lock lock(mutex());
  Stream *origin = stream_of(handle);
  *graph = nullptr;
  if (!origin || !origin->capture || origin->capture->origin != origin)
    return violate("the end of a capture that was not begun here", cudaErrorStreamCaptureUnmatched, handle);
  Capture *capture = origin->capture;
  if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != thread_number())
    return violate("the end of a capture in another thread", cudaErrorStreamCaptureWrongThread, handle);
  const bool is_joined = std::all_of(capture->streams.begin(), capture->streams.end(),
                                     [&](Stream *stream) { return has_joined(*stream, *origin); });
  if (!is_joined) violate("work in a capture that nobody waits for", cudaErrorStreamCaptureUnjoined, handle);
  const cudaError_t error = !is_joined            ? cudaErrorStreamCaptureUnjoined
                            : capture->is_broken ? cudaErrorStreamCaptureInvalidated
                                                 : cudaSuccess;
  for (Stream *stream : capture->streams) stream->capture = nullptr;
  captures().erase(capture);
  note(Kind::capture, "end", handle, capture->nodes);
  if (error == cudaSuccess) *graph = reinterpret_cast<cudaGraph_t>(new Graph{capture->nodes});
  delete capture;
  return fail(error);
}

ENTRY cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus *status,
                                           unsigned long long *number, cudaGraph_t *graph,
                                           const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges,
                                           size_t *node_count) {
  Lock lock(mutex());
  const Stream *stream = stream_of(handle);
  const Capture *capture = stream ? stream->capture : nullptr;
  *status = !capture             ? cudaStreamCaptureStatusNone
            : capture->is_broken ? cudaStreamCaptureStatusInvalidated
                                 : cudaStreamCaptureStatusActive;
  if (number) *number = capture ? capture->number : 0;
  if (graph) *graph = nullptr;
  if (nodes) *nodes = nullptr;
  if (edges) *edges = nullptr;
  if (node_count) *node_count = 0;
  return cudaSuccess;
}

ENTRY cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus *status) {
  return cudaStreamGetCaptureInfo(handle, status, nullptr, nullptr, nullptr, nullptr, nullptr);
}

ACCEPTS(cudaError_t, cudaStreamUpdateCaptureDependencies,
        (cudaStream_t, cudaGraphNode_t *, const cudaGraphEdgeData *, size_t, unsigned))

// Graphs

ENTRY cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long) {
  LEAVE_ON_ERROR(refuse_unsafe("cudaGraphInstantiate"));
  *executable = reinterpret_cast<cudaGraphExec_t>(new Graph{*graph_of(graph)});
  note(Kind::capture, "instantiate", nullptr, graph_of(graph)->nodes);
  return cudaSuccess;
}

ENTRY cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long flags) {
  return cudaGraphInstantiateWithFlags(executable, graph, flags);
}

ENTRY cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  if (is_captured(stream)) return violate("a launch of a graph in a capture", cudaErrorNotSupported, stream);
  note(Kind::graph, "launch", stream, graph_of(executable)->nodes);
  return cudaSuccess;
}

ENTRY cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph_of(graph);
  return cudaSuccess;
}

ENTRY cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete graph_of(executable);
  return cudaSuccess;
}

ENTRY cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *, size_t *nodes) {
  *nodes = graph_of(graph)->nodes;
  return cudaSuccess;
}

ENTRY cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t, cudaGraphNode_t *, cudaGraphEdgeData *, size_t *nodes) {
  *nodes = 0;
  return cudaSuccess;
}

ENTRY cudaError_t cudaUserObjectCreate(cudaUserObject_t *object, void *, cudaHostFn_t, unsigned, unsigned) {
  *object = reinterpret_cast<cudaUserObject_t>(1);
  return cudaSuccess;
}

ACCEPTS(cudaError_t, cudaUserObjectRelease, (cudaUserObject_t, unsigned))
ACCEPTS(cudaError_t, cudaGraphRetainUserObject, (cudaGraph_t, cudaUserObject_t, unsigned, unsigned))
ACCEPTS(cudaError_t, cudaDeviceGetGraphMemAttribute, (int, cudaGraphMemAttributeType, void *))
ACCEPTS(cudaError_t, cudaDeviceSetGraphMemAttribute, (int, cudaGraphMemAttributeType, void *))
