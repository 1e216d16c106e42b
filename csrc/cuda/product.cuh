// The weights that a warp owns, wherever they lie, and their product with the team's operand.
//
// A warp owns `kTiles` tiles of 16 weight rows, and of their columns a run of chunks: the first kRegisterChunks in registers
// for the whole sequence, the next in shared memory, and what fits in neither is read from memory at every step. Where several
// warps share the columns of the same rows (`splits`), the sums of the others are added by the warp of the first columns.
#pragma once

#include "operand.cuh"

namespace fastrnn::cuda {

template <typename Op, int kTiles, int kMaxRegisterChunks, typename Rows>
class WarpWeights {
 public:
  using Acc = typename Op::Acc;
  using Element = typename Op::Element;
  static constexpr int kRegisterChunks = Op::kInRegisters ? kMaxRegisterChunks : 0;
  static constexpr int kSharedChunkBytes = kTiles * Op::kSharedBytes;

  // Of the chunks [first, end) a warp has at most tiling.chunks. `shared`: of the block, [warps, shared_chunks, kTiles,
  // Op::kSharedBytes]. `rows`: as Op::load wants them.
  FASTRNN_DEVICE WarpWeights(const Rows& rows, int first, int end, const Tiling& tiling, unsigned char* shared)
      : rows_(rows), first_(first) {
    count_ = end - first < tiling.chunks ? end - first : tiling.chunks;
    shared_end_ = kRegisterChunks + tiling.shared_chunks < count_ ? kRegisterChunks + tiling.shared_chunks : count_;
    shared_ = shared + threadIdx.x / kWarp * tiling.shared_chunks * kSharedChunkBytes;
    if constexpr (kRegisterChunks > 0) {
      FASTRNN_UNROLL
      for (int chunk = 0; chunk < kRegisterChunks; ++chunk) {
        FASTRNN_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) registers_[chunk][tile] = from_memory(chunk, tile);
      }
    }
    FASTRNN_NO_UNROLL
    for (int chunk = kRegisterChunks; chunk < shared_end_; ++chunk) {
      FASTRNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) Op::to_shared(in_shared(chunk, tile), from_memory(chunk, tile));
    }
    __syncwarp();
  }

  // sum[n][tile] = weights * x[n]; `x` is [kN][rows of X][kTileBatch].
  template <int kN>
  FASTRNN_DEVICE void multiply(Acc (&sum)[kN][kTiles][4], const Element* x, int rows_of_x) const {
    unrolled<kN, kTiles, 4>([&](int n, int tile, int i) { sum[n][tile][i] = 0; });
    for_chunks([&](int chunk, auto weights_of) { add_chunk(sum, weights_of, x, rows_of_x, first_ + chunk); });
  }

  // sum[n][tile] += weights_of(tile) * a chunk of x[n].
  template <int kN, typename WeightsOf>
  FASTRNN_DEVICE static void add_chunk(Acc (&sum)[kN][kTiles][4], WeightsOf weights_of, const Element* x, int rows_of_x,
                                       int chunk_of_x) {
    typename Op::Inputs inputs[kN];
    FASTRNN_UNROLL
    for (int n = 0; n < kN; ++n)
      inputs[n] = Op::inputs(x + (static_cast<int64_t>(n) * rows_of_x + chunk_of_x * Op::kChunk) * kTileBatch);
    FASTRNN_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const typename Op::Weights weights = weights_of(tile);
      FASTRNN_UNROLL
      for (int n = 0; n < kN; ++n) Op::multiply_add(sum[n][tile], weights, inputs[n]);
    }
  }

  // Calls add(chunk, weights_of) for the warp's chunks in order, counted from its first; weights_of(tile).
  template <typename Add>
  FASTRNN_DEVICE void for_chunks(Add add) const {
    if constexpr (kRegisterChunks > 0) {
      FASTRNN_UNROLL
      for (int chunk = 0; chunk < kRegisterChunks; ++chunk) {
        if (chunk >= count_) break;
        add(chunk, [&](int tile) { return registers_[chunk][tile]; });
      }
    }
    FASTRNN_NO_UNROLL
    for (int chunk = kRegisterChunks; chunk < shared_end_; ++chunk)
      add(chunk, [&](int tile) { return Op::from_shared(in_shared(chunk, tile)); });
    FASTRNN_NO_UNROLL
    for (int chunk = shared_end_ > kRegisterChunks ? shared_end_ : kRegisterChunks; chunk < count_; ++chunk)
      add(chunk, [&](int tile) { return from_memory(chunk, tile); });
  }

 private:
  FASTRNN_DEVICE typename Op::Weights from_memory(int chunk, int tile) const {
    if (chunk >= count_) return {};
    return Op::load(rows_, tile, (first_ + chunk) * Op::kChunk);
  }
  FASTRNN_DEVICE unsigned char* in_shared(int chunk, int tile) const {
    return shared_ + (chunk - kRegisterChunks) * kSharedChunkBytes + tile * Op::kSharedBytes;
  }

  Rows rows_;
  int first_, count_, shared_end_;  // chunks: the first of all columns, how many, and where those in shared memory end
  unsigned char* shared_;
  typename Op::Weights registers_[kRegisterChunks > 0 ? kRegisterChunks : 1][kTiles];
};

// Where the chunks begin that a warp has of columns which `splits` warps share.
FASTRNN_DEVICE int first_chunk(const Tiling& tiling) {
  return static_cast<int>(threadIdx.x) / kWarp / tiling.unit_warps * tiling.chunks;
}

// Adds the sums of the warps that share the columns of the same rows, in fixed order; the first of them has the result.
// There are `num_owners` of those. `partial` is shared memory, [splits - 1, num_owners, kN * kTiles, 32] of four sums each.
template <typename Acc, int kN, int kTiles>
FASTRNN_DEVICE void add_splits(Acc (&sum)[kN][kTiles][4], int splits, int num_owners, Acc* partial) {
  if (splits == 1) return;
  struct alignas(16) Sums {
    Acc value[4];
  };
  constexpr int kSums = kN * kTiles * kWarp;  // of a warp
  const int warp = threadIdx.x / kWarp, owner = warp & (num_owners - 1);
  Sums* first = reinterpret_cast<Sums*>(partial) + owner * kSums + threadIdx.x % kWarp;
  const int stride = num_owners * kSums;  // from one split to the next
  if (warp >= num_owners)
    unrolled<kN, kTiles>([&](int n, int tile) {
      const Acc(&own)[4] = sum[n][tile];
      const int split = warp * splits / kWarps;  // warp / num_owners, which takes longer
      first[(split - 1) * stride + (n * kTiles + tile) * kWarp] = {{own[0], own[1], own[2], own[3]}};
    });
  __syncthreads();
  if (warp >= num_owners) return;
  const auto add = [&]<int kOthers>() {
    unrolled<kOthers, kN, kTiles>([&](int other, int n, int tile) {
      const Sums sums = first[other * stride + (n * kTiles + tile) * kWarp];
      unrolled<4>([&](int i) { sum[n][tile][i] += sums.value[i]; });
    });
  };
  switch (splits) {
    case 2: return add.template operator()<1>();
    case 4: return add.template operator()<3>();
    default: return add.template operator()<kWarps - 1>();
  }
}
template <typename Acc, int kN, int kTiles>
FASTRNN_DEVICE void add_splits(Acc (&sum)[kN][kTiles][4], const Tiling& tiling, Acc* partial) {
  add_splits(sum, tiling.splits, tiling.unit_warps, partial);
}

}  // namespace fastrnn::cuda
