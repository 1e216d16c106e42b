// The instruction sets the CPU code is compiled for, and which of them runs. Each set's code lives in a namespace of its own
// (portable, avx2, avx512, avx512_bf16), so that the linker never merges a function of one with its namesake of another.
#pragma once

#include "../params.h"

namespace fastrnn::cpu {

enum class Isa : int { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

// The best that this CPU runs, or what the environment variable FASTRNN_CPU_ISA ("portable", "avx2", "avx512", "avx512_bf16") asks
// for; read once. Throws std::runtime_error, naming what there is, where the variable asks for what cannot run.
Isa selected_isa();

// The set whose code serves a storage type: the selected one, but that avx512_bf16 has code for bfloat16 alone.
Isa isa_for(ScalarKind scalar);

const char* isa_name(Isa isa);

}  // namespace fastrnn::cpu
