#include "gemm_common.h"
#include "isa_portable.h"

#include "gemm.h"
