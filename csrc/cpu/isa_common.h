// What the engine uses that must not be compiled for one instruction set alone: every isa_*.cpp includes this first. A function
// of these headers may end up as one copy for the whole library, and the linker does not ask which CPU it was compiled for.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "batch.h"
#include "buffer.h"
#include "cache.h"
#include "dropout.h"
#include "layer_params.h"
#include "panel_claims.h"
#include "split.h"
#include "storage.h"
#include "team.h"
#include "work_queue.h"
