// The layers that recurrences.cpp runs.
#pragma once

#include <sstream>
#include <string>
#include <vector>

#include "../../csrc/params.h"
#include "memory.h"

namespace fastrnn::emulator {

struct Case {
  CellKind cell = CellKind::kLstm;
  ScalarKind scalar = ScalarKind::kFloat;
  std::string plan;  // csrc/cuda/recurrence.h: Run
  int64_t steps = 3, batch = 2, hidden_size = 5, directions = 1;
  bool projects = false, has_bias = true, ragged = false, packed = false, has_final_grads = true, records = true;
  char site = ' ';  // of the mask: 's' state, 'c' candidate, ' ' none
  ClipMode clip = ClipMode::kNone;
  std::string device = "H100";
  int batch_tiles = 0;  // that the plan chooses, of 8 samples; 0: whatever it does
  int64_t chunk = 0;    // of a stack, whose layers the directions are

  int64_t state_size() const { return projects ? hidden_size - 2 : hidden_size; }
  bool uses_tf32() const { return plan.ends_with("+tf32"); }

  std::string name() const {
    constexpr const char* kCells[] = {"tanh", "relu", "lstm", "gru"};
    constexpr const char* kScalars[] = {"float", "double", "half", "bfloat16"};
    std::ostringstream text;
    text << plan;
    if (chunk > 0) text << "-stack" << chunk;
    text << '-' << kCells[static_cast<int>(cell)] << '-' << kScalars[static_cast<int>(scalar)] << "-T" << steps << "-B"
         << batch << "-H" << hidden_size << "-D" << directions << (projects ? "-projects" : "")
         << (has_bias ? "" : "-nobias")
         << (ragged   ? "-ragged"
             : packed ? "-packed"
                      : "")
         << (has_final_grads ? "" : "-nofinals") << (records ? "" : "-norecord")
         << (site == 's'   ? "-state"
             : site == 'c' ? "-candidate"
                           : "")
         << (clip == ClipMode::kNorm    ? "-norm"
             : clip == ClipMode::kValue ? "-value"
                                        : "")
         << (device == "H100" ? "" : "-on " + device);
    return text.str();
  }
};

// "few": each cell by each plan in float32, small; "fewer": with fewer options. "types": in every arithmetic. "all": what is particular
// as well.
inline std::vector<Case> cases(const std::string& selection) {
  using enum CellKind;
  using enum ScalarKind;
  struct Number {
    ScalarKind scalar;
    const char* suffix;
  };
  std::vector<Number> numbers = {{kFloat, ""}};
  const bool few = selection == "few" || selection == "fewer";
  const int rounds = selection == "fewer" ? 2 : 3;  // of float32
  if (!few) numbers.insert(numbers.end(), {{kFloat, "+tf32"}, {kHalf, ""}, {kBfloat16, ""}, {kDouble, ""}});
  std::vector<Case> result;
  // Options are scattered, but the same in each run.
  uint32_t scattered = 1;
  const auto choose = [&](uint32_t choices) {
    scattered = scattered * 1664525 + 1013904223;
    return (scattered >> 16) % choices;
  };
  // Two clusters or three, the last with a block without units.
  const std::string kTwoLevel = "grid:cluster=2";
  const auto add = [&](const Number& number, const std::string& plan, CellKind cell) {
    Case c{.cell = cell, .scalar = number.scalar, .plan = plan + number.suffix};
    const uint32_t layout = choose(3), site = choose(3), clip = choose(3);
    c.batch = plan == "block" ? 3 : plan == "matmul" ? 5 : choose(3) == 0 ? 17 : 5;
    // Units of several blocks, but for `block` itself; never a multiple of anything.
    c.hidden_size = plan == "matmul" ? 7 : plan == "block" ? 13 : choose(2) ? 21 : 37;
    if (plan == kTwoLevel && c.hidden_size == 21) c.hidden_size = 69;
    c.directions = 1 + choose(2);
    if (plan == kTwoLevel && c.directions == 2)
      c.batch = 5;  // ThreadSanitizer knows 8,000 threads, and forward's run at once
    c.ragged = layout == 1;
    c.packed = layout == 2;
    c.has_bias = choose(4) > 0;
    c.has_final_grads = choose(4) > 0;
    c.site = site == 0 ? ' ' : site == 1 || cell == kRnnTanh || cell == kRnnRelu ? 's' : 'c';
    c.clip = static_cast<ClipMode>(clip);
    c.records = (layout + clip) % 3 > 0;
    // The plans with clusters have no kernels for double. Where relu's slope jumps, rounding decides.
    if ((plan == "cluster" || plan == kTwoLevel) && number.scalar == kDouble) return;
    if (plan == "matmul" && number.suffix[0] != '\0') return;  // its products are not ours
    if (cell == kRnnRelu && number.scalar != kFloat && number.scalar != kDouble) return;
    result.push_back(c);
  };
  for (const Number& number : numbers)
    for (int round = 0; round < (number.scalar == kFloat ? rounds : 1); ++round)
      for (const std::string plan : {"block", "stepwise", "grid", "cluster", "matmul"})
        for (const CellKind cell : {kLstm, kGru, kRnnTanh, kRnnRelu}) add(number, plan, cell);
  for (const Number& number : numbers)
    for (int round = 0; round < (number.scalar == kFloat ? rounds : 1); ++round)
      for (const CellKind cell : {kLstm, kGru, kRnnTanh, kRnnRelu}) add(number, kTwoLevel, cell);
  // No norm, after whose exchange nobody is a turn behind, and turns enough for both parities to come again.
  for (const CellKind cell : {kLstm, kGru, kRnnTanh})
    result.push_back({.cell = cell,
                      .plan = kTwoLevel,
                      .steps = 6,
                      .batch = 3,
                      .hidden_size = 37,
                      .ragged = cell == kGru,
                      .clip = ClipMode::kValue});
  // More teams than run at once, of 8 and of 16 samples.
  result.push_back({.cell = kLstm,
                    .plan = "grid:samples=8,cluster=2",
                    .steps = 4,
                    .batch = 42,
                    .hidden_size = 37,
                    .site = 's',
                    .clip = ClipMode::kNorm,
                    .device = "small"});
  for (const ScalarKind scalar : {kFloat, kHalf})
    for (const CellKind cell : {kGru, kRnnTanh}) {
      if (scalar != kFloat && few) continue;
      result.push_back({.cell = cell,
                        .scalar = scalar,
                        .plan = "grid:samples=16,cluster=2",
                        .steps = 5,
                        .batch = 20,
                        .hidden_size = 40,
                        .directions = 2,
                        .ragged = cell == kRnnTanh,
                        .packed = cell == kGru,
                        .clip = cell == kGru ? ClipMode::kNorm : ClipMode::kValue,
                        .device = "small"});
    }
  // Warps that share the columns two by two; warps of several groups of tiles, of one each. Forward takes 42 blocks at once, whose
  // threads are more than ThreadSanitizer knows.
  if (!kThreadSanitizer) {
    result.push_back({.cell = kLstm,
                      .plan = "grid:blocks=12,cluster=4",
                      .steps = 4,
                      .batch = 3,
                      .hidden_size = 330,
                      .clip = ClipMode::kValue});
    result.push_back({.cell = kGru,
                      .plan = "grid:blocks=6,cluster=2",
                      .steps = 3,
                      .batch = 3,
                      .hidden_size = 700,
                      .clip = ClipMode::kValue});
  }
  for (const ClipMode clip : {ClipMode::kNone, ClipMode::kNorm, ClipMode::kValue})
    result.push_back({.cell = kLstm,
                      .plan = "matmul",
                      .hidden_size = 6,
                      .directions = clip == ClipMode::kNorm ? 2 : 1,
                      .projects = true,
                      .ragged = clip != ClipMode::kValue,
                      .packed = clip == ClipMode::kValue,
                      .site = 's',
                      .clip = clip});
  // Norms that are recorded and nothing else, of several launches: one for each step; more teams than can run at once.
  for (const std::string plan : {"block", "stepwise", "grid", "cluster"})
    for (const CellKind cell : {kLstm, kGru, kRnnTanh})
      result.push_back({.cell = cell,
                        .plan = plan,
                        .batch = 14,
                        .hidden_size = plan == "block" ? 13
                                       : cell == kLstm ? 37
                                                       : 69,
                        .directions = 2,
                        .ragged = cell != kGru,
                        .packed = cell == kGru,
                        .clip = cell == kRnnTanh ? ClipMode::kValue : ClipMode::kNone,
                        .device = plan == "grid" ? "small" : "H100"});
  // Warps of a reduce-scatter with several groups of tiles, blocks with several warps of units, the last with fewer.
  result.push_back({.cell = kLstm,
                    .plan = "cluster",
                    .batch = 3,
                    .hidden_size = 260,
                    .ragged = true,
                    .site = 's',
                    .clip = ClipMode::kValue});
  // Warps without units, which nobody waits for, beside those that have some: both parities of each barrier are passed again.
  result.push_back({.cell = kLstm, .plan = "cluster", .steps = 6, .batch = 3, .hidden_size = 260, .device = "small"});
  // Two tiles of the batch, where a device has no room for as many clusters.
  for (const ScalarKind scalar : {kFloat, kHalf})
    for (const CellKind cell : {kLstm, kGru, kRnnTanh}) {
      if (scalar != kFloat && few) continue;
      result.push_back({.cell = cell,
                        .scalar = scalar,
                        .plan = "cluster",
                        .steps = 6,
                        .batch = 70,
                        .hidden_size = 37,
                        .ragged = cell == kLstm,
                        .packed = cell == kGru,
                        .site = 's',
                        .clip = cell == kLstm ? ClipMode::kValue : ClipMode::kNorm,
                        .device = "small",
                        .batch_tiles = 2});
    }
  // Stacks of layers, by chunks of their steps.
  struct Stack {
    const char* plan;
    CellKind cell;
    int64_t steps, chunk, layers, batch, hidden_size;
    char site;
    ClipMode clip;
  };
  constexpr ClipMode kNone = ClipMode::kNone, kNorm = ClipMode::kNorm, kValue = ClipMode::kValue;
  for (const Stack& s : std::vector<Stack>{
           // Two whole chunks and a shorter one; two slices.
           {"block", kLstm, 5, 2, 3, 10, 13, 's', kNorm},
           {"block", kGru, 2, 1, 2, 3, 5, 'c', kNone},
           {"stepwise", kLstm, 3, 2, 2, 3, 21, 's', kNorm},
           {"stepwise", kRnnTanh, 3, 2, 2, 3, 21, 's', kValue},
           {"cluster", kLstm, 5, 2, 3, 3, 21, 's', kNorm},
           {"cluster", kGru, 3, 2, 2, 3, 21, 's', kNone},
           {"cluster", kRnnTanh, 3, 2, 2, 3, 37, ' ', kValue},
           {"grid", kLstm, 5, 2, 3, 3, 21, 's', kNone},
           {"grid", kGru, 3, 1, 2, 3, 21, ' ', kNorm},
           {"grid", kRnnTanh, 3, 4, 2, 3, 37, 's', kValue},
       })
    result.push_back({.cell = s.cell,
                      .plan = s.plan,
                      .steps = s.steps,
                      .batch = s.batch,
                      .hidden_size = s.hidden_size,
                      .directions = s.layers,
                      .site = s.site,
                      .clip = s.clip,
                      .chunk = s.chunk});
  // Some of the layers at a time, since there is no room for the teams of all.
  result.push_back({.cell = kRnnTanh,
                    .plan = "grid:samples=8",
                    .steps = 2,
                    .batch = 10,
                    .hidden_size = 37,
                    .directions = 3,
                    .site = 's',
                    .device = "small",
                    .chunk = 1});
  if (!few) {
    // In other arithmetics.
    for (const std::string plan : {"cluster", "stepwise+tf32", "grid"})
      result.push_back({.cell = plan == "grid" ? kGru : kLstm,
                        .scalar = plan == "stepwise+tf32" ? kFloat : kHalf,
                        .plan = plan,
                        .steps = 3,
                        .batch = 3,
                        .hidden_size = 21,
                        .directions = 2,
                        .site = 's',
                        .chunk = 2});
  }
  if (selection != "all") return result;
  // More teams than can run at once; weights that do not fit on chip; a device that has fewer features.
  result.push_back({.cell = kLstm, .plan = "grid", .batch = 17, .hidden_size = 64, .directions = 2, .device = "small"});
  result.push_back({.cell = kLstm, .plan = "block", .steps = 2, .batch = 1, .hidden_size = 120, .device = "RTX 4090"});
  result.push_back({.cell = kLstm, .scalar = kHalf, .plan = "block", .steps = 2, .batch = 9, .hidden_size = 121});
  result.push_back({.cell = kGru, .scalar = kHalf, .plan = "grid", .steps = 2, .hidden_size = 72, .device = "A100"});
  result.push_back({.cell = kGru, .plan = "", .hidden_size = 7, .device = "old"});
  result.push_back({.cell = kLstm, .plan = "", .hidden_size = 7, .device = "H100 with code for 7.5"});
  return result;
}

}  // namespace fastrnn::emulator
