// fastrnn._C: what Python may know about the build and the processor. No tensors pass here; see ops/ for those.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "plan.h"

namespace py = pybind11;

namespace {

std::vector<std::string> words(const std::string& text) {
  std::vector<std::string> result;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    result.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return result;
}

std::optional<std::string> unless_empty(std::string text) {
  if (text.empty()) return std::nullopt;
  return text;
}

// setup.py defines the macros.
py::dict build_info() {
  using namespace py::literals;
  return py::dict("version"_a = FASTRNN_VERSION, "torch"_a = FASTRNN_TORCH_VERSION,
                  "cuda"_a = unless_empty(FASTRNN_CUDA_VERSION), "cuda_archs"_a = words(FASTRNN_CUDA_ARCHS),
                  "without_cuda"_a = unless_empty(FASTRNN_WITHOUT_CUDA), "compiler"_a = "gcc " __VERSION__);
}

// Of the features that the CPU engine has code for, those that this processor has.
std::vector<std::string> cpu_features() {
  std::vector<std::string> result;
#if defined(__x86_64__)
  const std::pair<const char*, bool> features[] = {
      {"avx2", __builtin_cpu_supports("avx2")},         {"fma", __builtin_cpu_supports("fma")},
      {"f16c", __builtin_cpu_supports("f16c")},         {"avx512f", __builtin_cpu_supports("avx512f")},
      {"avx512bw", __builtin_cpu_supports("avx512bw")}, {"avx512dq", __builtin_cpu_supports("avx512dq")},
      {"avx512vl", __builtin_cpu_supports("avx512vl")}, {"avx512bf16", __builtin_cpu_supports("avx512bf16")},
  };
  for (const auto& [name, present] : features)
    if (present) result.push_back(name);
#endif
  return result;
}

py::dict plan_dict(const fastrnn::Plan& plan) {
  using namespace py::literals;
  const fastrnn::cuda::Tiling& tiling = plan.tiling;
  return py::dict("team"_a = fastrnn::team_name(plan.team), "team_size"_a = tiling.team_size,
                  "cluster_size"_a = tiling.cluster_size, "num_teams"_a = plan.num_teams,
                  "samples"_a = plan.batch_tiles * fastrnn::cuda::kTileBatch, "unit_warps"_a = tiling.unit_warps,
                  "splits"_a = tiling.splits, "chunks"_a = tiling.chunks, "shared_chunks"_a = tiling.shared_chunks,
                  "scatters"_a = plan.scatters, "exchange_bytes"_a = plan.exchange_bytes,
                  "shared_bytes"_a = plan.shared_bytes, "step_us"_a = plan.step_us, "start_us"_a = plan.start_us,
                  "bound"_a = fastrnn::bound(plan), "text"_a = fastrnn::describe(plan));
}

fastrnn::DeviceLimits device_limits(int major, int minor, int multiprocessors, int shared_per_block,
                                    const std::vector<int>& resident_clusters, std::optional<int> compiled_arch) {
  fastrnn::DeviceLimits limits{
      major, minor, multiprocessors, shared_per_block, compiled_arch.value_or(major * 10 + minor), {}};
  if (resident_clusters.size() >= limits.resident_clusters.size())
    throw std::invalid_argument("resident_clusters has " + std::to_string(resident_clusters.size()) +
                                " sizes, expected at most " + std::to_string(fastrnn::cuda::kMaxClusterSize));
  std::copy(resident_clusters.begin(), resident_clusters.end(), limits.resident_clusters.begin() + 1);
  return limits;
}

fastrnn::PlanRequest plan_request(int cell, int scalar, int64_t steps, int64_t batch, int64_t hidden_size,
                                  int64_t state_size, int64_t directions, bool backward, bool clips_norm,
                                  bool allows_tf32, const std::string& wanted, bool all_plans, int64_t chunk) {
  fastrnn::PlanRequest request{};
  request.shape = {steps,      batch,      steps * batch,           hidden_size,
                   state_size, directions, fastrnn::CellKind(cell), fastrnn::ScalarKind(scalar),
                   chunk,      0};
  request.backward = backward;
  request.clips_norm = clips_norm;
  request.projects = state_size != hidden_size;
  request.allows_tf32 = allows_tf32;
  request.wanted = wanted;
  request.all_plans = all_plans;
  return request;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &build_info,
        "What this copy of fastrnn was built as, and for: version, torch, cuda, cuda_archs, why it is without_cuda, "
        "compiler.");
  m.def("cpu_features", &cpu_features, "Instruction sets of this processor that the CPU engine can use.");

  py::class_<fastrnn::DeviceLimits>(m, "DeviceLimits", "What a plan has to know of a GPU.")
      .def(py::init(&device_limits), py::arg("major"), py::arg("minor"), py::arg("multiprocessors"),
           py::arg("shared_per_block"), py::arg("resident_clusters"), py::arg("compiled_arch") = py::none(),
           "resident_clusters: of 1, 2, ... blocks, how many run at the same time; empty where there are none. "
           "compiled_arch: of the kernels' code, 80 for 8.0, 0 where there is none for the device; None: the device's "
           "own.");
  py::class_<fastrnn::PlanRequest>(m, "PlanRequest",
                                   "What a plan is asked for; cell and scalar as csrc/params.h numbers them.")
      .def(py::init(&plan_request), py::kw_only(), py::arg("cell"), py::arg("scalar"), py::arg("steps"),
           py::arg("batch"), py::arg("hidden_size"), py::arg("state_size"), py::arg("directions") = 1,
           py::arg("backward") = false, py::arg("clips_norm") = false, py::arg("allows_tf32") = false,
           py::arg("wanted") = "", py::arg("all_plans") = false, py::arg("chunk") = 0);
  m.def(
      "plan",
      [](const fastrnn::PlanRequest& request, const fastrnn::DeviceLimits& device) {
        return plan_dict(fastrnn::make_plan(request, device));
      },
      "The plan that would run. ValueError, with the reason, where the wanted one does not.");
  m.def(
      "all_plans",
      [](const fastrnn::PlanRequest& request, const fastrnn::DeviceLimits& device) {
        py::list plans;
        for (const fastrnn::Plan& plan : fastrnn::all_plans(request, device)) plans.append(plan_dict(plan));
        return plans;
      },
      "All plans that could run, the fastest over all steps first.");
}
