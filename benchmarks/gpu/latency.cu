// The latencies that plan's constants stand for, measured: how long blocks take to hand data to each other and to wait, how many
// 16-block clusters fit, and what a launch costs. Built by `python -m benchmarks.gpu latency`; one line of JSON per item.
//
//   latency ITEM     with ITEM of: grid_counter grid_words push_store push_bulk cluster_barrier clusters together launches
//
// A hand-over is measured as a chain: a block does not begin turn n before it has everybody's data of turn n - 1, as in a
// recurrence. Time per turn is that of kTurns turns in one launch, less that of none. Waits are bounded: one that is not
// answered traps, and the program says which item it was.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "intrinsics.cuh"

using namespace fastrnn::cuda;

namespace {

constexpr int kTurns = 2000, kThreads = 256, kMaxPeers = 16;
constexpr long long kPatience = 1ll << 26;  // turns of a waiting loop
const char* item = "";

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("{\"name\": \"%s\", \"error\": \"%s: %s\"}\n", item, what, cudaGetErrorString(error));
  std::exit(1);
}

void report(const std::string& detail, const char* unit, double value) {
  std::printf("{\"name\": \"%s%s%s\", \"%s\": %.4f}\n", item, detail.empty() ? "" : " ", detail.c_str(), unit, value);
  std::fflush(stdout);
}

__device__ void pause_or_trap(long long& spins) {
  if (++spins > kPatience) asm volatile("trap;");
}

// ------------------------------------------------------------------------------------------------ between blocks, by L2

// Everyone counts up one counter and waits until all have.
__global__ void grid_counter(unsigned* counter, int turns) {
  for (int turn = 1; turn <= turns; ++turn) {
    __syncthreads();
    if (threadIdx.x == 0) {
      red_release_add(counter, 1);
      long long spins = 0;
      while (load_acquire(counter) < gridDim.x * unsigned(turn)) pause_or_trap(spins);
    }
    __syncthreads();
  }
}

// Everyone writes one word, whose value says its turn, and reads everybody's: no flag, the data itself is waited for. The words
// of three turns are apart, so that nobody overwrites what another has yet to read.
__global__ void grid_words(unsigned* words, int turns) {
  for (int turn = 1; turn <= turns; ++turn) {
    unsigned* const now = words + turn % 3 * gridDim.x;
    if (threadIdx.x == 0)
      asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(now + blockIdx.x), "r"(turn) : "memory");
    for (unsigned peer = threadIdx.x; peer < gridDim.x; peer += blockDim.x) {
      unsigned value = 0;
      long long spins = 0;
      while (true) {
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(now + peer) : "memory");
        if (value == unsigned(turn)) break;
        pause_or_trap(spins);
      }
    }
    __syncthreads();
  }
}

// --------------------------------------------------------------------------------------------------- inside a cluster

struct Mailbox {  // two turns
  MBarrier arrived[2];
};

__device__ unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Copies `bytes` of the own shared memory into a peer's and counts them at its barrier.
__device__ void copy_bulk(SharedAddress peer, SharedAddress peer_barrier, const void* own, unsigned bytes) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(peer),
      "r"(shared_address(own)), "r"(bytes), "r"(peer_barrier)
      : "memory");
}

// Each turn every block sends `slice` bytes to every block of its cluster and waits for all of theirs.
template <bool kBulk>
__global__ void push(int turns, int peers, unsigned slice) {
  FASTRNN_SMEM(memory);
  auto* const mailbox = reinterpret_cast<Mailbox*>(memory);
  unsigned char* const own = memory + 128;
  unsigned char* const inbox = own + slice;  // [2][peers][slice]
  const unsigned rank = cluster_rank();
  for (unsigned i = threadIdx.x; i < slice; i += blockDim.x) own[i] = static_cast<unsigned char>(i);
  if (threadIdx.x == 0) {
    for (MBarrier& barrier : mailbox->arrived) mbarrier_init(&barrier, 1);
    fence_mbarrier_init();
  }
  asm volatile("fence.proxy.async;" ::: "memory");
  cluster_sync();
  for (int turn = 0; turn < turns; ++turn) {
    MBarrier* const arrived = &mailbox->arrived[turn & 1];
    if (threadIdx.x == 0) mbarrier_expect_bytes(arrived, unsigned(peers) * slice);
    unsigned char* const place = inbox + (static_cast<unsigned>(turn & 1) * peers + rank) * slice;
    if constexpr (kBulk) {
      if (threadIdx.x < unsigned(peers))
        copy_bulk(map_to_peer(place, threadIdx.x), map_to_peer(arrived, threadIdx.x), own, slice);
    } else {
      const unsigned words = slice / 16;
      for (unsigned i = threadIdx.x; i < words * peers; i += blockDim.x) {
        const unsigned peer = i / words, word = i % words;
        store_async(map_to_peer(place + word * 16, peer), map_to_peer(arrived, peer),
                    *reinterpret_cast<const uint4*>(own + word * 16));
      }
    }
    long long spins = 0;
    while (!mbarrier_test(arrived, (turn >> 1) & 1)) pause_or_trap(spins);
    __syncthreads();  // all have seen the phase end before the barrier is armed again
  }
  cluster_sync();
}

__global__ void cluster_barrier(int turns) {
  for (int turn = 0; turn < turns; ++turn) cluster_sync();
}

__global__ void nothing(int) {}

// ------------------------------------------------------------------------------------------------------------- the host

template <typename... Parameters>
cudaError_t start(void (*kernel)(Parameters...), int blocks, int cluster, size_t shared, bool cooperative,
                  cudaStream_t stream, Parameters... parameters) {
  if (shared > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)), "shared memory");
  if (cluster > 8) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "clusters");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute attributes[2];
  config.attrs = attributes;
  if (cooperative) {
    attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
    attributes[config.numAttrs++].val.cooperative = 1;
  }
  if (cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = unsigned(cluster);
    attributes[config.numAttrs].val.clusterDim.y = attributes[config.numAttrs].val.clusterDim.z = 1;
    ++config.numAttrs;
  }
  return cudaLaunchKernelEx(&config, kernel, parameters...);
}

// Microseconds of `work` on the stream; the shortest of a few, since everything that disturbs makes it longer.
template <typename Work>
double microseconds(Work work) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  double best = 1e30;
  for (int round = 0; round < 5; ++round) {
    check(cudaEventRecord(begin, nullptr), "event");
    work();
    check(cudaEventRecord(end, nullptr), "event");
    check(cudaEventSynchronize(end), "run");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end), "event");
    if (milliseconds * 1e3 < best) best = milliseconds * 1e3;
  }
  return best;
}

template <typename Run>
double per_turn(Run run) {  // run(turns) launches
  run(kTurns);              // loads the kernel
  return (microseconds([&] { run(kTurns); }) - microseconds([&] { run(0); })) / kTurns;
}

void measure_grid(int multiprocessors, bool words) {
  unsigned* memory;
  const size_t size = 3 * sizeof(unsigned) * size_t(multiprocessors);
  check(cudaMalloc(&memory, size), "memory");
  for (int blocks : {8, 32, multiprocessors}) {
    const double us = per_turn([&](int turns) {
      check(cudaMemsetAsync(memory, 0, size, nullptr), "memset");
      check(start(words ? grid_words : grid_counter, blocks, 1, 0, true, nullptr, memory, turns), "launch");
    });
    report(std::to_string(blocks) + " blocks", "us", us);
  }
}

template <bool kBulk>
void measure_push() {
  for (int peers : {8, kMaxPeers})
    for (unsigned bytes : {512u, 1024u, 16384u}) {  // that a block receives in a turn
      const unsigned slice = bytes / unsigned(peers);
      const size_t shared = 128 + slice + 2 * size_t(bytes);
      const double us = per_turn([&](int turns) {
        check(start(push<kBulk>, peers, peers, shared, false, nullptr, turns, peers, slice), "launch");
      });
      report(std::to_string(bytes) + " bytes to each of " + std::to_string(peers), "us", us);
    }
}

void measure_cluster_barrier() {
  for (int peers : {2, 8, kMaxPeers})
    report(std::to_string(peers) + " blocks", "us", per_turn([&](int turns) {
             check(start(cluster_barrier, peers, peers, 0, false, nullptr, turns), "launch");
           }));
}

// How many clusters of 16 blocks with 200 KB each are resident at once.
void count_clusters() {
  constexpr int kShared = 200 * 1024;
  check(cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared), "shared memory");
  check(cudaFuncSetAttribute(nothing, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "clusters");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kMaxPeers * 16);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kShared;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = kMaxPeers;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  check(cudaOccupancyMaxActiveClusters(&clusters, nothing, &config), "occupancy");
  report("of 16 blocks at 200 KB", "clusters", clusters);
}

// Clusters and a cooperative launch at once, plainly and under capture: 1 where the driver takes it.
void try_together() {
  for (int cluster : {8, kMaxPeers}) {
    cudaStream_t stream;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    const bool plain = start(nothing, 2 * cluster, cluster, 0, true, stream, 0) == cudaSuccess &&
                       cudaStreamSynchronize(stream) == cudaSuccess;
    (void)cudaGetLastError();
    report("plain, clusters of " + std::to_string(cluster), "works", plain);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t runnable = nullptr;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    bool captured = start(nothing, 2 * cluster, cluster, 0, true, stream, 0) == cudaSuccess;
    captured = cudaStreamEndCapture(stream, &graph) == cudaSuccess && captured;
    captured = captured && cudaGraphInstantiate(&runnable, graph, 0) == cudaSuccess &&
               cudaGraphLaunch(runnable, stream) == cudaSuccess && cudaStreamSynchronize(stream) == cudaSuccess;
    (void)cudaGetLastError();
    report("captured, clusters of " + std::to_string(cluster), "works", captured);
  }
}

void measure_launches() {
  constexpr int kLaunches = 1000;
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  const auto launch_all = [&](cudaStream_t where) {
    for (int i = 0; i < kLaunches; ++i) check(start(nothing, 1, 1, 0, false, where, 0), "launch");
  };
  launch_all(nullptr);
  report("one by one", "us", microseconds([&] { launch_all(nullptr); }) / kLaunches);
  cudaGraph_t graph;
  cudaGraphExec_t runnable;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  launch_all(stream);
  check(cudaStreamEndCapture(stream, &graph), "capture");
  check(cudaGraphInstantiate(&runnable, graph, 0), "graph");
  check(cudaGraphLaunch(runnable, nullptr), "graph");
  report("in a graph", "us", microseconds([&] { check(cudaGraphLaunch(runnable, nullptr), "graph"); }) / kLaunches);
}

}  // namespace

int main(int argc, char** argv) {
  item = argc == 2 ? argv[1] : "";
  const std::string name = item;
  int device = 0, multiprocessors = 0;
  check(cudaGetDevice(&device), "device");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "device");
  if (name == "grid_counter" || name == "grid_words")
    measure_grid(multiprocessors, name == "grid_words");
  else if (name == "push_store")
    measure_push<false>();
  else if (name == "push_bulk")
    measure_push<true>();
  else if (name == "cluster_barrier")
    measure_cluster_barrier();
  else if (name == "clusters")
    count_clusters();
  else if (name == "together")
    try_together();
  else if (name == "launches")
    measure_launches();
  else
    return std::fprintf(stderr, "latency: no item \"%s\"\n", item), 2;
  check(cudaDeviceSynchronize(), "run");
}
