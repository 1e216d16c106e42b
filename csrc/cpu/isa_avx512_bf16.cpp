#if defined(__x86_64__)

#include "isa_common.h"
// Then the choice, then the engine.
#include "isa_avx512_bf16.h"

#include "isa_entry.h"

#endif
