// The emulator's own tests: `unit NAME SEED` runs one and prints "ok", or the error that the emulator has found.
#include <chrono>
#include <cstdio>
#include <map>

#include "unit_right.h"
#include "unit_wrong.h"

namespace fastrnn::unit {
namespace {

std::vector<int> ints(256);

// What the runtime refuses, and with which error.
void refusals() {
  const auto is = [](cudaError_t got, cudaError_t expected, const char* what) {
    expect(got == expected, what);
    expect(cudaGetLastError() == expected && cudaGetLastError() == cudaSuccess, "the last error");
  };
  const auto small = +[](int) {};
  is(try_launch({1, 1025}, small, 0), cudaErrorInvalidConfiguration, "1025 threads");
  is(try_launch({0, 32}, small, 0), cudaErrorInvalidConfiguration, "no blocks");
  is(try_launch({1, 32, 100 << 10}, small, 0), cudaErrorInvalidValue, "shared memory without opting in");
  is(cudaFuncSetAttribute(small, cudaFuncAttributeMaxDynamicSharedMemorySize, 228 << 10), cudaErrorInvalidValue,
     "more shared memory than there is");
  expect(cudaFuncSetAttribute(small, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 << 10) == cudaSuccess,
         "all of it");
  expect(try_launch({1, 32, 227 << 10}, small, 0) == cudaSuccess, "all of the shared memory");
  is(try_launch({6, 32, 0, 4}, small, 0), cudaErrorInvalidConfiguration, "a cluster that does not divide the grid");
  is(try_launch({16, 32, 0, 16}, small, 0), cudaErrorInvalidClusterSize, "16 blocks without the attribute");
  expect(cudaFuncSetAttribute(small, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess,
         "the attribute");
  expect(try_launch({16, 32, 0, 16}, small, 0) == cudaSuccess, "16 blocks with it");
  is(try_launch({133, 32, 200 << 10, 1, true}, small, 0), cudaErrorCooperativeLaunchTooLarge, "one block too many");
  expect(try_launch({132, 32, 200 << 10, 1, true}, small, 0) == cudaSuccess, "as many blocks as fit");
  is(try_launch({144, 32, 200 << 10, 16, true}, small, 0), cudaErrorCooperativeLaunchTooLarge, "one cluster too many");
  expect(try_launch({128, 32, 200 << 10, 16, true}, small, 0) == cudaSuccess, "as many clusters as fit");
  int clusters = 0, blocks = 0;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {16, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(16);
  config.blockDim = dim3(256);
  config.dynamicSmemBytes = 200 << 10;
  config.attrs = &attribute;
  config.numAttrs = 1;
  expect(cudaOccupancyMaxActiveClusters(&clusters, small, &config) == cudaSuccess && clusters == 8, "a cluster a GPC");
  expect(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, small, 256, 100 << 10) == cudaSuccess && blocks == 2,
         "two blocks of half the shared memory");
  emulator::use_device("A100");
  is(try_launch({8, 32, 0, 4}, small, 0), cudaErrorNotSupported, "clusters before 9.0");
  emulator::use_device("H100");
  try {
    launch({1, 64}, two_places, 0);
  } catch (const emulator::Error&) {
  }
  expect(try_launch({1, 32}, small, 0) == cudaErrorLaunchFailure, "a launch after a kernel has failed");
  emulator::reset_device();
  expect(try_launch({1, 32}, small, 0) == cudaSuccess, "a launch in a new process");
}

// How fast fibers are switched, by barriers of a block and by matrix instructions.
void speed() {
  const auto kernel = +[](int rounds, bool multiplies) {
    float c[4] = {};
    const uint32_t a[4] = {}, b[2] = {};
    for (int i = 0; i < rounds; ++i) multiplies ? mma_m16n8k16_bf16(c, a, b) : __syncthreads();
  };
  for (const bool multiplies : {false, true}) {
    const auto begin = std::chrono::steady_clock::now();
    const uint64_t before = emulator::statistics.switches;
    launch({8, 256}, kernel, 4000, multiplies);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    std::printf("%s: %.1f million switches a second\n", multiplies ? "matrix instructions" : "barriers",
                (emulator::statistics.switches - before) / seconds * 1e-6);
  }
}

const std::map<std::string, std::function<void()>> tests = {
    {"barriers", barriers},
    {"exits", exits},
    {"shuffles", shuffles},
    {"products", products},
    {"tiles", tiles},
    {"copies", copies<true>},
    {"grid_barriers", grid_barriers<true>},
    {"grid_barriers_of_clusters", grid_barriers<true, 2>},
    {"ring", [] { ring({}); }},
    {"refusals", refusals},
    {"speed", speed},
    {"copies_without_wait", copies<false>},
    {"grid_barriers_without_wait", grid_barriers<false>},
    {"ring_without_init", [] { ring({.inits = false}); }},
    {"ring_without_fence", [] { ring({.fences = false}); }},
    {"ring_without_wait", [] { ring({.waits = false}); }},
    {"nobody_comes", [] { launch({2, 64}, nobody_comes, 0); }},
    {"two_places", [] { launch({2, 64}, two_places, 0); }},
    {"lanes_apart", [] { launch({1, 32}, lanes_apart, ints.data()); }},
    {"absent_lane", [] { launch({1, 16}, absent_lane, ints.data()); }},
    {"wait_for_ever",
     [] {
       unsigned flag = 0;
       launch({2, 32}, wait_for_ever, &flag);
     }},
    {"next_door", [] { launch({1, 32, 64}, next_door, 0); }},
    {"forgets_to_wait", [] { launch({1, 32, 64}, forgets_to_wait, ints.data()); }},
    {"crooked", [] { launch({1, 32, 64}, crooked, reinterpret_cast<const char*>(ints.data())); }},
    {"too_far", [] { launch({1, 32, 256}, too_far, 0); }},
    {"without_barrier", [] { launch({1, 64, 256}, without_barrier, ints.data()); }},
    {"pushes_to_the_dead", [] { launch({2, 32, 64, 2}, pushes_to_the_dead, 0); }},
    {"arrives_twice", [] { launch({1, 32, 64}, arrives_twice, 0); }},
    {"overrun_by_phases", [] { launch({1, 32, 64}, overrun_by_phases, 0); }},
    {"uninitialised",
     [] {
       std::vector<float> out(32, 0);
       launch({1, 32, 128}, uninitialised, out.data());
       for (const float x : out) expect(x != x, "shared memory is not poisoned");
     }},
};

}  // namespace
}  // namespace fastrnn::unit

int main(int count, char** arguments) {
  using namespace fastrnn;
  using unit::tests;
  if (count != 3 || !tests.count(arguments[1])) {
    for (const auto& [name, test] : tests) std::printf("%s\n", name.c_str());
    return 2;
  }
  emulator::set_seed(std::strtoull(arguments[2], nullptr, 10));
  try {
    tests.at(arguments[1])();
    std::printf("ok\n");
  } catch (const emulator::Error& error) {
    std::printf("%s\n", error.what());
  }
}
