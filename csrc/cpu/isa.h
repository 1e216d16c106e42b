// The instruction sets the CPU code is compiled for, and which of them runs. Each set's code lives in a namespace of its own
// (portable, avx2, avx512), so that the linker never merges a function of one with its namesake of another.
#pragma once

namespace fastrnn::cpu {

enum class Isa : int { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

// The best that this CPU runs, or what the environment variable FASTRNN_CPU_ISA ("portable", "avx2", "avx512") asks for; read
// once. Throws std::runtime_error, naming what there is, where the variable asks for what cannot run.
Isa selected_isa();

const char* isa_name(Isa isa);

}  // namespace fastrnn::cpu
