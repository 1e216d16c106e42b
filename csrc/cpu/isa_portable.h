// What follows is compiled for what the compiler takes as the least of its target (x86-64: SSE2; aarch64: NEON).
#pragma once

#define FASTRNN_ISA portable
#define FASTRNN_VECTOR_BYTES 16
