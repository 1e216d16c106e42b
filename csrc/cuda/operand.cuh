// How a warp multiplies 16 rows of weights with a chunk of the team's operand, for each kind of number.
//
// The operand X (h_{t-1} in forward, the gate gradients in backward) is [K][8]: K rows of 8 samples. A chunk is `kChunk` rows of
// it. Within a chunk a thread's weights are contiguous along a weight row, so that 16-byte loads fetch them; the order of
// the rows in X follows (`place`), so that reading the operand has no bank conflicts.
//
//   Weights  a thread's share of 16 weight rows by kChunk columns: of the rows `group` and `group` + 8
//   Inputs   a thread's share of kChunk rows of X
//   Acc[4]   its sums: rows `group`, `group` + 8 by samples 2 * quad, 2 * quad + 1, as the matrix instructions have them
#pragma once

#include <cstring>
#include <type_traits>

#include <intrinsics.cuh>
#include "storage.cuh"
#include "tiling.h"

namespace fastrnn::cuda {

constexpr int kTileRows = 16;  // rows of weights in a matrix instruction

// Where a thread stands in a fragment.
struct Lane {
  int group, quad;
  FASTRNN_DEVICE static Lane of_thread() {
    const int lane = threadIdx.x % kWarp;
    return {lane / 4, lane % 4};
  }
};

// Calls visit with every index, or every combination of indices, written out one after another: so that arrays indexed by them
// stay in registers.
template <int kCount, typename Visit>
FASTRNN_DEVICE void unrolled(Visit visit) {
  FASTRNN_UNROLL
  for (int i = 0; i < kCount; ++i) visit(i);
}
template <int kFirst, int kSecond, typename Visit>
FASTRNN_DEVICE void unrolled(Visit visit) {
  unrolled<kFirst>([&](int i) { unrolled<kSecond>([&](int j) { visit(i, j); }); });
}
template <int kFirst, int kSecond, int kThird, typename Visit>
FASTRNN_DEVICE void unrolled(Visit visit) {
  unrolled<kFirst>([&](int i) { unrolled<kSecond, kThird>([&](int j, int k) { visit(i, j, k); }); });
}

// What a thread reads together of a weight row. Columns that do not exist (a tail, or a row that is none) read as zeros.
template <typename Scalar>
struct WeightRun {
  const Scalar* first;
  int64_t stride;  // between columns
  int count;       // of the columns that exist; none where it is not positive
};

// A thread's share of a chunk of X for the tensor cores: two fragments b.
struct FragmentInputs {
  uint32_t word[4];
};

// Tensor cores. `Number` says how the operand is stored and multiplied.
template <typename Number>
struct Tensor {
  using Scalar = typename Number::Scalar;
  using Element = typename Number::Element;
  using Acc = float;
  static constexpr int kPerLane = 16 / sizeof(Element);  // columns of a row that a thread has of a chunk
  static constexpr int kPerWord = 4 / sizeof(Element);
  static constexpr int kChunk = 4 * kPerLane;
  static constexpr bool kInRegisters = true;

  struct Weights {
    uint32_t word[8];  // two fragments; even: row `low`, odd: row `high`
  };
  using Inputs = FragmentInputs;

  // Where row k of X lies: words of the same index, of all four quads, side by side.
  FASTRNN_DEVICE static int place(int k) {
    const int in_chunk = k % kChunk, quad = in_chunk / kPerLane, word = in_chunk % kPerLane / kPerWord;
    return k - in_chunk + (word * 4 + quad) * kPerWord + k % kPerWord;
  }

  FASTRNN_DEVICE static Element operand(float x) { return Number::operand(x); }

  // `rows(tile, half, column)`: the WeightRun of row `group` + 8 * half of a tile.
  template <typename Rows>
  FASTRNN_DEVICE static Weights load(const Rows& rows, int tile, int column) {
    const int first = column + Lane::of_thread().quad * kPerLane;
    Weights weights;
    load_row<0>(weights, rows(tile, 0, first));
    load_row<1>(weights, rows(tile, 1, first));
    return weights;
  }

  static constexpr int kSharedBytes = kTileRows * kChunk * sizeof(Element);
  FASTRNN_DEVICE static void to_shared(unsigned char* place, const Weights& weights) {
    uint4* quads = reinterpret_cast<uint4*>(place) + threadIdx.x % kWarp;
    quads[0] = {weights.word[0], weights.word[1], weights.word[2], weights.word[3]};
    quads[kWarp] = {weights.word[4], weights.word[5], weights.word[6], weights.word[7]};
  }
  FASTRNN_DEVICE static Weights from_shared(const unsigned char* place) {
    const uint4* quads = reinterpret_cast<const uint4*>(place) + threadIdx.x % kWarp;
    const uint4 first = quads[0], second = quads[kWarp];
    return {{first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w}};
  }

  // `x`: the chunk's first row.
  FASTRNN_DEVICE static Inputs inputs(const Element* x) { return Number::inputs(x); }

  FASTRNN_DEVICE static void multiply_add(Acc (&sum)[4], const Weights& weights, const Inputs& inputs) {
    FASTRNN_UNROLL
    for (int half = 0; half < 2; ++half) {
      const uint32_t a[4] = {weights.word[half * 4], weights.word[half * 4 + 1], weights.word[half * 4 + 2],
                             weights.word[half * 4 + 3]};
      const uint32_t b[2] = {inputs.word[half * 2], inputs.word[half * 2 + 1]};
      Number::multiply_add(sum, a, b);
    }
  }

 private:
  template <int kOdd>
  FASTRNN_DEVICE static void load_row(Weights& weights, const WeightRun<Scalar>& run) {
    uint32_t word[4] = {0, 0, 0, 0};
    if (run.count > 0) {
      if (run.stride == 1 && run.count >= kPerLane && reinterpret_cast<uintptr_t>(run.first) % 16 == 0) {
        const uint4 all = *reinterpret_cast<const uint4*>(run.first);
        word[0] = all.x, word[1] = all.y, word[2] = all.z, word[3] = all.w;
        FASTRNN_UNROLL
        for (int i = 0; i < 4; ++i) word[i] = Number::rounded_word(word[i]);
      } else {
        FASTRNN_UNROLL
        for (int i = 0; i < 4; ++i) {
          Scalar pair[kPerWord];
          FASTRNN_UNROLL
          for (int j = 0; j < kPerWord; ++j) {
            const int index = i * kPerWord + j;
            pair[j] = index < run.count ? run.first[index * run.stride] : Number::operand(0.0f);
          }
          memcpy(&word[i], pair, 4);
          word[i] = Number::rounded_word(word[i]);
        }
      }
    }
    FASTRNN_UNROLL
    for (int i = 0; i < 4; ++i) weights.word[2 * i + kOdd] = word[i];
  }
};

// 16-bit numbers: ldmatrix reads a chunk of 32 rows, transposed on the way.
template <typename Scalar_>
struct HalfNumber {
  using Scalar = Scalar_;
  using Element = Scalar;
  FASTRNN_DEVICE static Element operand(float x) {
    Element element;
    store(&element, x);
    return element;
  }
  FASTRNN_DEVICE static uint32_t rounded_word(uint32_t word) { return word; }
  FASTRNN_DEVICE static FragmentInputs inputs(const Element* x) {
    FragmentInputs inputs;
    ldmatrix_x4_trans(inputs.word, x + threadIdx.x % kWarp * kTileBatch);
    return inputs;
  }
  FASTRNN_DEVICE static void multiply_add(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (std::is_same_v<Scalar, __half>) {
      mma_m16n8k16_f16(sum, a, b);
    } else {
      mma_m16n8k16_bf16(sum, a, b);
    }
  }
};

// float32 storage, multiplied as tf32: rounded to nearest, not truncated.
struct Tf32Number {
  using Scalar = float;
  using Element = float;
  FASTRNN_DEVICE static Element operand(float x) { return round_to_tf32(x); }
  FASTRNN_DEVICE static uint32_t rounded_word(uint32_t word) {
    float x;
    memcpy(&x, &word, 4);
    x = round_to_tf32(x);
    memcpy(&word, &x, 4);
    return word;
  }
  FASTRNN_DEVICE static FragmentInputs inputs(const Element* x) {
    const Lane lane = Lane::of_thread();
    FragmentInputs inputs;
    FASTRNN_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float value = x[(i * 4 + lane.quad) * kTileBatch + lane.group];
      memcpy(&inputs.word[i], &value, 4);
    }
    return inputs;
  }
  FASTRNN_DEVICE static void multiply_add(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_m16n8k8_tf32(sum, a, b);
  }
};

// Ordinary multiply-adds, exact in float32 and float64. All quads of a group hold the same weights, which in registers would be
// four times too many: they stay in shared memory.
template <typename Scalar_>
struct Fma {
  using Scalar = Scalar_;
  using Element = Scalar;
  using Acc = Scalar;
  static constexpr int kChunk = 16 / sizeof(Scalar);
  static constexpr bool kInRegisters = false;

  struct Weights {
    Acc low[kChunk], high[kChunk];
  };
  struct Inputs {
    Acc value[kChunk][2];
  };

  FASTRNN_DEVICE static int place(int k) { return k; }
  FASTRNN_DEVICE static Element operand(Acc x) { return x; }

  template <typename Rows>
  FASTRNN_DEVICE static Weights load(const Rows& rows, int tile, int column) {
    Weights weights;
    load_row(weights.low, rows(tile, 0, column));
    load_row(weights.high, rows(tile, 1, column));
    return weights;
  }

  static constexpr int kSharedBytes = kTileRows * kChunk * sizeof(Element);
  FASTRNN_DEVICE static void to_shared(unsigned char* place, const Weights& weights) {
    const Lane lane = Lane::of_thread();
    auto* rows = reinterpret_cast<Row*>(place);
    if (lane.quad == 0) copy(rows[lane.group].value, weights.low);
    if (lane.quad == 1) copy(rows[lane.group + 8].value, weights.high);
  }
  FASTRNN_DEVICE static Weights from_shared(const unsigned char* place) {
    const Lane lane = Lane::of_thread();
    const auto* rows = reinterpret_cast<const Row*>(place);
    const Row low = rows[lane.group], high = rows[lane.group + 8];
    Weights weights;
    copy(weights.low, low.value);
    copy(weights.high, high.value);
    return weights;
  }

  FASTRNN_DEVICE static Inputs inputs(const Element* x) {
    const Lane lane = Lane::of_thread();
    Inputs inputs;
    FASTRNN_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      const Pair pair = *reinterpret_cast<const Pair*>(x + i * kTileBatch + 2 * lane.quad);
      inputs.value[i][0] = pair.value[0], inputs.value[i][1] = pair.value[1];
    }
    return inputs;
  }

  FASTRNN_DEVICE static void multiply_add(Acc (&sum)[4], const Weights& weights, const Inputs& inputs) {
    FASTRNN_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      sum[0] += weights.low[i] * inputs.value[i][0];
      sum[1] += weights.low[i] * inputs.value[i][1];
      sum[2] += weights.high[i] * inputs.value[i][0];
      sum[3] += weights.high[i] * inputs.value[i][1];
    }
  }

 private:
  struct alignas(16) Row {
    Acc value[kChunk];
  };
  struct alignas(2 * sizeof(Acc)) Pair {
    Acc value[2];
  };
  FASTRNN_DEVICE static void copy(Acc (&to)[kChunk], const Acc (&from)[kChunk]) {
    FASTRNN_UNROLL
    for (int i = 0; i < kChunk; ++i) to[i] = from[i];
  }
  FASTRNN_DEVICE static void load_row(Acc (&to)[kChunk], const WeightRun<Scalar>& run) {
    if (run.stride == 1 && run.count >= kChunk && reinterpret_cast<uintptr_t>(run.first) % 16 == 0) {
      copy(to, reinterpret_cast<const Row*>(run.first)->value);
      return;
    }
    FASTRNN_UNROLL
    for (int i = 0; i < kChunk; ++i) to[i] = i < run.count ? run.first[i * run.stride] : Acc(0);
  }
};

}  // namespace fastrnn::cuda
