// What gemm.h uses that must not be compiled for one instruction set alone: every gemm_*.cpp includes this first (see
// isa_common.h).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>

#include "buffer.h"
#include "cache.h"
#include "matmul.h"
#include "phases.h"
#include "split.h"
#include "storage.h"
#include "team.h"
