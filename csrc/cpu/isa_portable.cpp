#include "isa_common.h"
// Then the choice, then the engine.
#include "isa_portable.h"

#include "isa_entry.h"
