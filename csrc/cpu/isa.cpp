#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fastrnn::cpu {
namespace {

constexpr Isa kAll[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16};

bool runs(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kPortable: return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::kAvx512:
      return runs(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::kAvx512Bf16: return runs(Isa::kAvx512) && __builtin_cpu_supports("avx512bf16");
  }
  return false;
#else
  return isa == Isa::kPortable;
#endif
}

Isa choose() {
  const char* wanted = std::getenv("FASTRNN_CPU_ISA");
  Isa best = Isa::kPortable;
  std::string available;
  for (Isa isa : kAll) {
    if (!runs(isa)) continue;
    best = isa;
    available += available.empty() ? "" : ", ";
    available += isa_name(isa);
    if (wanted && std::string(wanted) == isa_name(isa)) return isa;
  }
  if (wanted && *wanted)
    throw std::runtime_error("FASTRNN_CPU_ISA is '" + std::string(wanted) + "', but this CPU runs: " + available);
  return best;
}

}  // namespace

Isa selected_isa() {
  static const Isa isa = choose();
  return isa;
}

Isa isa_for(ScalarKind scalar) {
  const Isa isa = selected_isa();
  return isa == Isa::kAvx512Bf16 && scalar != ScalarKind::kBfloat16 ? Isa::kAvx512 : isa;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kPortable: return "portable";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
    case Isa::kAvx512Bf16: return "avx512_bf16";
  }
  return "unknown";
}

}  // namespace fastrnn::cpu
