// Runs the CUDA kernels on a selection of layers and compares with the textbook (reference.h): the program that sanitizers
// watch, whose lines are counted, and that every planted mistake has to make fail.
//
// `recurrences SELECTION SEED [WORD]`: the cases of a selection whose names hold WORD. Exit status 1 where numbers are wrong.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>

#include "../../csrc/cuda/recurrence.h"
#include "array.h"
#include "cases.h"
#include "device.h"
#include "grid.h"
#include "norm_check.h"
#include "product.h"
#include "reference.h"

namespace fastrnn::emulator {
namespace {

using reference::Vector;

ScalarKind acc_of(ScalarKind scalar) {
  return scalar == ScalarKind::kDouble ? ScalarKind::kDouble : ScalarKind::kFloat;
}

// Random numbers that the storage type holds exactly.
Vector draw_values(std::mt19937_64& random, ScalarKind kind, size_t count, double scale) {
  std::uniform_real_distribution<double> uniform(-scale, scale);
  Vector values(count);
  for (double& x : values) x = uniform(random);
  return Array(kind, values).values();
}

reference::Layer make_layer(const Case& c) {
  std::mt19937_64 random(7);
  reference::Layer layer;
  if (c.ragged || c.packed) {
    layer.lengths.resize(c.batch);
    for (int64_t& length : layer.lengths) length = static_cast<int64_t>(random() % (c.steps + 1));
    layer.lengths[0] = c.steps;
    layer.lengths.back() = c.batch > 1 ? 0 : c.steps;
  }
  Shape& s = layer.shape;
  s = {c.steps, c.batch, c.steps * c.batch, c.hidden_size, c.state_size(), c.directions, c.cell, c.scalar, c.chunk, 0};
  if (c.packed) {
    std::sort(layer.lengths.rbegin(), layer.lengths.rend());
    s.rows = 0;
    for (int64_t t = 0; t < s.steps; ++t) {
      layer.offsets.push_back(s.rows);
      for (const int64_t length : layer.lengths) s.rows += length > t;
    }
  }
  const int64_t H = s.hidden_size, P = s.state_size, D = s.directions, B = s.batch, G = num_gates(s.cell);
  const auto draw = [&](int64_t count, double scale) { return draw_values(random, c.scalar, count, scale); };
  layer.dropout_site = c.site == 'c' ? DropoutSite::kCandidate : DropoutSite::kState;
  layer.has_mask = c.site != ' ';
  layer.projects = P != H;
  const double scale = 1.5 / std::sqrt(static_cast<double>(P));
  layer.gates = draw(D * s.rows * G * H, 1.5);
  layer.w_hh = draw(D * G * H * P, scale);
  if (s.cell == CellKind::kGru && c.has_bias) layer.b_hn = draw(D * H, 0.5);
  if (layer.projects) layer.w_hr = draw(D * P * H, scale);
  layer.h0 = draw(D * B * P, 0.8);
  if (s.cell == CellKind::kLstm) layer.c0 = draw(D * B * H, 0.8);
  if (layer.has_mask) {
    layer.mask.resize(D * B * (layer.dropout_site == DropoutSite::kState ? P : H));
    for (double& m : layer.mask) m = random() % 3 ? 1.5 : 0;
  }
  layer.grad_y = draw(s.rows * D * P, 1);
  if (c.has_final_grads) {
    layer.grad_h_n = draw(D * B * P, 1);
    if (s.cell == CellKind::kLstm) layer.grad_c_n = draw(D * B * H, 1);
  }
  layer.clip_mode = c.clip;
  layer.clip_threshold = c.clip == ClipMode::kValue ? 0.1 : 0.7;
  layer.grad_scale = c.clip == ClipMode::kNone ? 1 : 4;
  return layer;
}

// How far a number may be off, in units of the largest number: rounding of the state at every step, and of the operands.
double tolerance(const Case& c) {
  switch (c.scalar) {
    case ScalarKind::kDouble: return 1e-12;
    case ScalarKind::kHalf: return 8e-3;
    case ScalarKind::kBfloat16: return 6e-2;
    default: return c.uses_tf32() ? 8e-3 : 5e-6;
  }
}

struct Comparison {
  const Case& the_case;
  bool right = true;

  void operator()(const char* what, const Vector& ours, const Vector& expected) {
    double largest = 1, error = 0;
    size_t where = 0;
    for (const double x : expected) largest = std::max(largest, std::abs(x));
    for (size_t i = 0; i < expected.size(); ++i) {
      const double difference = std::abs(ours[i] - expected[i]);
      if (difference <= error) continue;
      error = difference != difference ? HUGE_VAL : difference;
      where = i;
    }
    if (ours.size() == expected.size() && error <= tolerance(the_case) * largest) return;
    right = false;
    std::printf("%s: %s[%zu of %zu] is %g, expected %g\n", the_case.name().c_str(), what, where, expected.size(),
                ours[where], expected[where]);
  }
};

// As fastrnn/ops.py sizes it.
int64_t workspace_bytes(const Shape& shape, bool backward, bool records) {
  const int64_t G = num_gates(shape.cell), slices = (shape.batch + 7) / 8, samples = 8 * (slices + 1);
  const int64_t D = shape.directions, H = shape.hidden_size, rows = (backward ? G : 1) * H + 32, width = 8;
  int64_t bytes =
      slices * D * 2 * 16 * 128 + D * samples * 2 * rows * width + 2 * D * shape.batch * H * width + shape.batch * 8;
  if (backward) bytes += D * samples * 144 * H;
  if (backward) bytes += D * samples * 2 * ((H + 7) / 8) * 8 + slices * D * (G + 1) * H * width;
  if (records) bytes += D * samples * shape.steps * ((H + 15) / 16) * 8;
  const int64_t by_matmul = D * shape.batch * H * width * ((backward ? 2 * G + 4 : G + 3) + 2);
  return 9 * 256 + std::max(bytes, by_matmul);
}

// What the layers of a stack read in a stage: it comes just before, from the layer below or in backward above.
struct Input {
  Array given, all;
  int64_t width;  // of a row

  Input(ScalarKind scalar, const Vector& values, const Shape& shape)
      : given(shape.is_stack() ? Array(scalar, values.size()) : Array(scalar, values)),
        all(scalar, values),
        width(static_cast<int64_t>(values.size()) / (shape.directions * shape.rows)) {}

  void bring(const Shape& s, bool is_backward) const {
    for (int64_t layer = 0; s.is_stack() && layer < s.directions; ++layer) {
      const int64_t first = (s.stage - (is_backward ? s.directions - 1 - layer : layer)) * s.chunk;
      if (first < 0 || first >= s.steps) continue;
      const int64_t last = std::min(first + s.chunk, s.steps), step = is_backward ? s.steps - last : first;
      const int64_t begin = (layer * s.rows + step * s.batch) * width, end = begin + (last - first) * s.batch * width;
      const auto size = static_cast<char*>(all.at(end)) - static_cast<char*>(all.at(begin));
      std::memcpy(given.at(begin), all.at(begin), size);
    }
  }
};

template <typename T>
const T* data_or_null(const std::vector<T>& values) {
  return values.empty() ? nullptr : values.data();
}

// What the case is there for may hang on the plan.
void check_plan(const Case& c, const Shape& shape) {
  if (c.batch_tiles == 0) return;
  for (const bool is_backward : {false, true}) {
    PlanRequest request{};
    request.shape = shape;
    request.backward = is_backward;
    request.clips_norm = is_backward && c.clip == ClipMode::kNorm;
    request.projects = c.projects;
    request.allows_tf32 = c.uses_tf32();
    request.wanted = c.plan.substr(0, c.plan.find('+'));
    const Plan plan = make_plan(request, cuda::current_device());
    if (plan.batch_tiles != c.batch_tiles) throw std::logic_error("the plan is " + describe(plan));
  }
}

bool run_case(const Case& c) {
  reset_device();
  use_device(c.device);
  const reference::Layer layer = make_layer(c);
  const reference::Result expected = reference::run(layer);
  const Shape& s = layer.shape;
  check_plan(c, s);
  const ScalarKind scalar = c.scalar, acc = acc_of(scalar);
  const int64_t H = s.hidden_size, P = s.state_size, D = s.directions, B = s.batch, R = s.rows;
  const int64_t G = num_gates(s.cell);
  const bool lstm = s.cell == CellKind::kLstm, gru = s.cell == CellKind::kGru;

  const Input gates_x(scalar, layer.gates, s), grads_of_y(scalar, layer.grad_y, s);
  const Array &gates = gates_x.given, &grad_y = grads_of_y.given;
  const Array w_hh(scalar, layer.w_hh), b_hn(scalar, layer.b_hn), w_hr(scalar, layer.w_hr);
  const Array h0(scalar, layer.h0), c0(scalar, layer.c0), mask(acc, layer.mask);
  const Array y(scalar, R * D * P), h_n(scalar, D * B * P), c_n(scalar, layer.c0.size());
  const Array cells(acc, lstm ? D * R * H : 0), n_h(scalar, gru ? D * R * H : 0);
  const Array hidden(scalar, layer.projects ? D * R * H : 0);
  ForwardParams forward{};
  forward.shape = s;
  forward.dropout_site = layer.dropout_site;
  forward.gates = gates.data();
  for (int64_t d = 0; d < D; ++d) {
    forward.w_hh[d] = w_hh.at(d * G * H * P);
    forward.b_hn[d] = b_hn.at(d * H);
    forward.w_hr[d] = w_hr.at(d * P * H);
  }
  forward.h0 = h0.data();
  forward.c0 = c0.data();
  forward.mask = mask.data();
  // A packed batch tells its lengths itself.
  forward.lengths = c.packed && c.directions == 1 ? nullptr : data_or_null(layer.lengths);
  forward.offsets = data_or_null(layer.offsets);
  forward.y = y.data();
  forward.h_n = h_n.data();
  forward.c_n = c_n.data();
  forward.save = true;
  forward.cells = cells.data();
  forward.n_h = n_h.data();
  forward.hidden = hidden.data();
  const auto run_with_scratch = [&](auto function, auto params, const Input& input, bool is_backward) {
    const int64_t num_bytes = workspace_bytes(s, is_backward, c.records && c.clip != ClipMode::kNorm);
    void* scratch = std::aligned_alloc(256, (num_bytes + 255) / 256 * 256);
    poison(scratch, num_bytes);
    const std::unique_ptr<void, decltype(&std::free)> owner(scratch, std::free);
    for (int64_t& stage = params.shape.stage; stage < s.stages(); ++stage) {
      input.bring(params.shape, is_backward);
      function(params, {nullptr, c.plan, scratch, num_bytes, plain_product});
    }
  };
  run_with_scratch(cuda::forward, forward, gates_x, false);
  Comparison compare{c};
  compare("y", y.values(), expected.y);
  compare("h_n", h_n.values(), expected.h_n);
  compare("c_n", c_n.values(), expected.c_n);

  const Array grad_h_n(scalar, layer.grad_h_n), grad_c_n(scalar, layer.grad_c_n);
  const Array norms(acc, expected.norms.size()), grad_gates(scalar, D * R * G * H),
      grad_n_h(scalar, expected.grad_n_h.size());
  const Array grad_h(scalar, expected.grad_h.size()), grad_h0(scalar, D * B * P), grad_c0(scalar, layer.c0.size());
  const Array grad_bias(acc, expected.grad_bias.size()), h_prev(scalar, D * R * P);
  std::vector<char> clipped(expected.clipped.size(), 2);
  const auto grad_scale = static_cast<float>(layer.grad_scale);
  BackwardParams backward{};
  backward.shape = s;
  backward.dropout_site = layer.dropout_site;
  backward.gates = G > 1 ? gates.data() : nullptr;
  backward.cells = cells.data();
  backward.n_h = n_h.data();
  backward.y = y.data();
  std::memcpy(backward.w_hh, forward.w_hh, sizeof backward.w_hh);
  std::memcpy(backward.w_hr, forward.w_hr, sizeof backward.w_hr);
  backward.h0 = h0.data();
  backward.c0 = c0.data();
  backward.mask = mask.data();
  backward.lengths = forward.lengths;
  backward.offsets = forward.offsets;
  backward.grad_y = grad_y.data();
  backward.grad_h_n = grad_h_n.data();
  backward.grad_c_n = grad_c_n.data();
  backward.clip_mode = layer.clip_mode;
  backward.clip_threshold = layer.clip_threshold;
  backward.grad_scale = layer.grad_scale == 1 ? nullptr : &grad_scale;
  backward.norms = c.records ? norms.data() : nullptr;
  backward.clipped = reinterpret_cast<bool*>(clipped.data());
  backward.grad_gates = grad_gates.data();
  backward.grad_n_h = grad_n_h.data();
  backward.grad_h = grad_h.data();
  backward.grad_h0 = grad_h0.data();
  backward.grad_c0 = grad_c0.data();
  backward.grad_bias = grad_bias.data();
  backward.h_prev = h_prev.data();
  run_with_scratch(cuda::backward, backward, grads_of_y, true);
  compare("grad_gates", grad_gates.values(), expected.grad_gates);
  compare("grad_n_h", grad_n_h.values(), expected.grad_n_h);
  compare("grad_h", grad_h.values(), expected.grad_h);
  compare("grad_h0", grad_h0.values(), expected.grad_h0);
  compare("grad_c0", grad_c0.values(), expected.grad_c0);
  compare("grad_bias", grad_bias.values(), expected.grad_bias);
  compare("h_prev", h_prev.values(), expected.h_prev);
  if (c.records) compare("norms", norms.values(), expected.norms);
  // Whether a norm exceeds the threshold may hang on rounding, but not everywhere.
  compare("clipped", Vector(clipped.begin(), clipped.end()), Vector(expected.clipped.begin(), expected.clipped.end()));
  return compare.right;
}

// What the device refuses is said with kernel, plan, shape and advice. True if so.
bool tells_refusals() {
  const std::pair<cudaError_t, const char*> refusals[] = {
      {cudaErrorNoKernelImageForDevice, "not built for this GPU"},
      {cudaErrorInsufficientDriver, "driver is too old"},
      {cudaErrorCooperativeLaunchTooLarge, "FASTRNN_PLANS=stepwise"},
      {cudaErrorLaunchOutOfResources, "too many resources"},
  };
  bool right = true;
  for (const auto& [error, words] : refusals) {
    refuse_next_launch(error);
    std::string message = "nothing";
    try {
      run_case({.cell = CellKind::kGru, .plan = "block"});
    } catch (const std::runtime_error& refusal) {
      message = refusal.what();
    }
    for (const char* word : {"recurrence_forward", "plan block", "GRU, hidden_size 5, batch 2, steps 3", words})
      if (message.find(word) == std::string::npos) {
        right = false;
        std::printf("a refused launch says \"%s\", without \"%s\"\n", message.c_str(), word);
      }
  }
  return right;
}

// Where the device has no room for the blocks that wait for each other, the next plan runs; other errors are told. True if so.
bool falls_to_the_next_plan() {
  bool right = true;
  for (const char* plan : {"cluster", "grid"})
    for (const cudaError_t error :
         {cudaErrorCooperativeLaunchTooLarge, cudaErrorLaunchOutOfResources, cudaErrorInvalidClusterSize}) {
      refuse_next_launch(error);
      try {
        right &= run_case({.cell = CellKind::kGru, .plan = plan});
      } catch (const std::runtime_error& refusal) {
        right = false;
        std::printf("after a refused launch of plan %s no other runs: %s\n", plan, refusal.what());
      }
    }
  const auto must_fail = [&](cudaError_t error, const Case& the_case, const char* otherwise) {
    refuse_next_launch(error);
    try {
      run_case(the_case);
      right = false;
      std::printf("%s\n", otherwise);
    } catch (const std::runtime_error&) {
    }
  };
  must_fail(cudaErrorNoKernelImageForDevice, {.cell = CellKind::kGru, .plan = "grid"},
            "a launch without a kernel passes for one without room");
  // Of a stack the other plan would not find what the stages before have left.
  must_fail(cudaErrorLaunchOutOfResources, {.cell = CellKind::kGru, .plan = "grid", .directions = 2, .chunk = 2},
            "a stack goes on by another plan");
  return right;
}

// A refused launch leaves no error behind, and one that was there before does not vanish. True if so.
bool leaves_errors_to_whoever_caused_them() {
  const double known = 1;
  double partial = 0, out = 0;
  bool right = true;
  for (const bool has_error : {false, true}) {
    reset_device();
    int value = 0;
    if (has_error) (void)cudaDeviceGetAttribute(&value, cudaDevAttrMax, 0);
    refuse_next_launch(cudaErrorLaunchOutOfResources);
    bool is_refused = false;
    try {
      cuda::sum_of_squares({{}, {&known}, &partial, &out, ScalarKind::kDouble, /*root=*/true}, nullptr);
    } catch (const std::runtime_error&) {
      is_refused = true;
    }
    if (is_refused && (cudaPeekAtLastError() != cudaSuccess) == has_error) continue;
    right = false;
    std::printf("after a refused launch the error before it is %s\n", has_error ? "gone" : "another");
  }
  return right;
}

// What the runtime fails to say is asked again; what it has said is not.
bool asks_until_it_is_told() {
  reset_device();
  use_device("H100 with code for 8.0");
  fail_next_cluster_query(cudaErrorMemoryAllocation);
  const int first = cuda::current_device().max_cluster_size(), second = cuda::current_device().max_cluster_size();
  const bool is_clear = cudaPeekAtLastError() == cudaSuccess;
  const uint64_t before = statistics.queries;
  cuda::current_device();
  if (first == 0 && second == cuda::kMaxClusterSize && is_clear && statistics.queries == before) return true;
  std::printf("clusters of %d blocks after a failure, then of %d; %d errors left, %d queries of what is known\n", first,
              second, !is_clear, static_cast<int>(statistics.queries - before));
  return false;
}

}  // namespace
}  // namespace fastrnn::emulator

int main(int count, char** arguments) {
  using namespace fastrnn::emulator;
  if (count < 3) {
    std::printf("usage: recurrences SELECTION SEED [WORD]\n");
    return 2;
  }
  set_seed(std::strtoull(arguments[2], nullptr, 10));
  int num_cases = 0, num_wrong = 0;
  for (const Case& c : cases(arguments[1])) {
    if (count > 3 && c.name().find(arguments[3]) == std::string::npos) continue;
    ++num_cases;
    try {
      num_wrong += !run_case(c);
    } catch (const std::exception& error) {
      ++num_wrong;
      std::printf("%s: %s\n", c.name().c_str(), error.what());
    }
  }
  if (std::string(arguments[1]) == "all")
    num_wrong += !tells_refusals() + !falls_to_the_next_plan() + !leaves_errors_to_whoever_caused_them() +
                 !asks_until_it_is_told();
  if (count == 3) num_wrong += !norms_are_right();
  std::printf("%d cases, %d wrong, %llu threads, %llu switches\n", num_cases, num_wrong,
              static_cast<unsigned long long>(statistics.threads),
              static_cast<unsigned long long>(statistics.switches));
  return num_cases == 0 ? 2 : num_wrong > 0;
}
