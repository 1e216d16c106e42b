#include "recurrence.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <array>
#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>

#include "clusters.h"
#include "kernels.h"
#include "launch.cuh"
#include "matmul.h"

namespace fastrnn::cuda {
namespace {

template <typename Call>
void check(Call call) {
  const cudaError_t error = attempt(call);
  if (error != cudaSuccess) throw std::runtime_error(std::string("fastrnn: ") + cudaGetErrorString(error));
}

}  // namespace

DeviceLimits current_device() {
  static std::mutex mutex;
  static std::map<int, DeviceLimits> known;
  int device = 0;
  check([&] { return cudaGetDevice(&device); });
  const std::lock_guard lock(mutex);
  if (const auto found = known.find(device); found != known.end()) return found->second;
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check([&] { return cudaDeviceGetAttribute(&value, attribute, device); });
    return value;
  };
  DeviceLimits limits{};
  limits.major = ask(cudaDevAttrComputeCapabilityMajor);
  limits.minor = ask(cudaDevAttrComputeCapabilityMinor);
  limits.multiprocessors = ask(cudaDevAttrMultiProcessorCount);
  limits.shared_per_block = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  limits.compiled_arch = compiled_arch();
  if (limits.major >= 9 && limits.compiled_arch > 0 && ask(cudaDevAttrClusterLaunch) != 0) {
    const auto counts = count_resident_clusters(limits.shared_per_block);
    if (!counts) return limits;  // without clusters for once: the next call asks again
    limits.resident_clusters = *counts;
  }
  known.emplace(device, limits);
  return limits;
}

namespace {

// FASTRNN_PLANS: empty, "all", or the only plan (plan.h: PlanRequest::wanted).
std::string plans_allowed() {
  const char* value = std::getenv("FASTRNN_PLANS");
  return value ? value : "";
}

template <typename Params>
PlanRequest request_of(const Params& params, const std::string& plan) {
  PlanRequest request{};
  request.shape = params.shape;
  request.projects = params.w_hr[0] != nullptr;
  const std::string allowed = plans_allowed();
  request.all_plans = allowed == "all";
  const size_t plus = plan.find('+');
  request.wanted = plan.substr(0, plus);
  if (plus != std::string::npos) {
    if (plan.substr(plus) != "+tf32")
      throw std::invalid_argument("plan is \"" + plan + "\", expected a plan's name, then nothing or \"+tf32\"");
    request.allows_tf32 = true;
  }
  if (request.wanted.empty() && !request.all_plans) request.wanted = allowed;
  return request;
}

template <typename Function>
bool with_kernels(CellKind cell, Function function) {
  switch (cell) {
    case CellKind::kLstm: return function(LstmKernels{});
    case CellKind::kGru: return function(GruKernels{});
    default: return function(RnnKernels{});
  }
}

// Calls function with the kernels of the plan's arithmetic.
template <typename Params, typename Function>
bool with_recurrence(const Params& params, const Plan& plan, Function function) {
  return with_kernels(params.shape.cell, [&](auto kernels) {
    using Kernels = decltype(kernels);
    switch (params.shape.scalar) {
      case ScalarKind::kHalf: return function(typename Kernels::Half{});
      case ScalarKind::kBfloat16: return function(typename Kernels::Bfloat16{});
      case ScalarKind::kDouble: return function(typename Kernels::Double{});
      default:
        return plan.arithmetic == Arithmetic::kTf32 ? function(typename Kernels::Tf32{})
                                                    : function(typename Kernels::Float{});
    }
  });
}

// The plans in the order they are tried: what cannot run here after all (no cluster of that size fits, no team is resident) is passed
// over.
std::vector<Plan> plans_for(const PlanRequest& request, const DeviceLimits& device) {
  std::vector<Plan> plans = all_plans(request, device);
  if (plans.empty()) make_plan(request, device);  // says why there is none
  return plans;
}

template <typename Params, typename Matmul, typename Function>
void run_first_that_fits(const Params& params, const PlanRequest& request, const Run& run, Matmul matmul,
                         Function function) {
  const DeviceLimits device = current_device();
  for (const Plan& plan : plans_for(request, device)) {
    if (plan.team == Team::kMatmul) return matmul(params, run);
    if (with_recurrence(params, plan, [&](auto kernels) { return function(kernels, plan, device); })) return;
    // Another plan would look for what the stages before have left in other places.
    if (params.shape.is_stack()) break;
  }
  throw std::runtime_error("no plan fits this device for " + describe(params.shape) +
                           ": its multiprocessors are taken, or clusters are not available; plan=\"stepwise\" (or "
                           "FASTRNN_PLANS=stepwise for a whole process) runs without cooperative launches");
}

}  // namespace

void forward(const ForwardParams& params, const Run& run) {
  run_first_that_fits(params, request_of(params, run.plan), run, matmul_forward,
                      [&](auto kernels, const Plan& plan, const DeviceLimits& device) {
                        return kernels.forward(params, plan, device, run);
                      });
}

void backward(const BackwardParams& params, const Run& run) {
  PlanRequest request = request_of(params, run.plan);
  request.backward = true;
  request.clips_norm = params.clip_mode == ClipMode::kNorm;
  run_first_that_fits(params, request, run, matmul_backward,
                      [&](auto kernels, const Plan& plan, const DeviceLimits& device) {
                        return kernels.backward(params, plan, device, run);
                      });
}

}  // namespace fastrnn::cuda
