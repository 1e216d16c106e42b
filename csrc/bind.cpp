// fastrnn._C: what Python may know about the build and the processor. No tensors pass here; see ops/ for those.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

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
      {"avx512vl", __builtin_cpu_supports("avx512vl")},
  };
  for (const auto& [name, present] : features)
    if (present) result.push_back(name);
#endif
  return result;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &build_info,
        "What this copy of fastrnn was built as, and for: version, torch, cuda, cuda_archs, why it is without_cuda, "
        "compiler.");
  m.def("cpu_features", &cpu_features, "Instruction sets of this processor that the CPU engine can use.");
}
