// The recurrences and products of the CPU engine, portable code, by std::threads of which some are slow: so that ThreadSanitizer, which does not know
// the OpenMP runtime, sees all that orders them. Every run must agree with the first to the bit; the last line says how often work was
// given away.
//   threads_test <runs>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "layer_params.h"
#include "matmul.h"
#include "team.h"
#include "work_queue.h"

namespace fastrnn::cpu {

void run_team(TeamJob& job, int num_threads) {
  static std::mt19937 random(1);
  job.prepare(num_threads);
  std::vector<std::thread> threads;
  for (int thread = 0; thread < num_threads; ++thread) {
    const std::chrono::microseconds late(random() % 3 == 0 ? random() % 3000 : 0);
    threads.emplace_back([&job, thread, late] {
      std::this_thread::sleep_for(late);
      job.work(thread);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

namespace portable {
void forward(const LayerForwardParams& params, int num_threads, int64_t l2_bytes);
void backward(const LayerBackwardParams& params, int num_threads, int64_t l2_bytes);
void joint_matmul(const JointMatmulParams& params, int num_threads);
}  // namespace portable

}  // namespace fastrnn::cpu

using namespace fastrnn;
using namespace fastrnn::cpu;

namespace {

struct Case {
  const char* name;
  CellKind cell;
  int64_t steps, batch, input, hidden, state, directions;
  bool ragged;
  int64_t l2_bytes;  // decides whether rows or units are shared
};

constexpr int64_t kTiny = 1 << 10, kHuge = 1 << 30;
constexpr Case kCases[] = {
    {"rows", CellKind::kLstm, 40, 28, 6, 10, 10, 1, false, kHuge},
    {"rows, ragged, two directions", CellKind::kGru, 30, 27, 5, 9, 9, 2, true, kHuge},
    {"rows, narrow panels", CellKind::kRnnTanh, 30, 29, 5, 22, 22, 1, true, kHuge},
    {"units", CellKind::kLstm, 20, 9, 19, 90, 90, 1, false, kTiny},
    {"units, ragged, two directions", CellKind::kGru, 20, 8, 20, 84, 84, 2, true, kTiny},
    {"units, projected", CellKind::kLstm, 12, 7, 20, 90, 40, 1, true, kTiny},
};

using Floats = std::vector<float>;

Floats numbers(int64_t count, float scale) {
  static std::mt19937 random(2);
  std::uniform_real_distribution<float> uniform(-scale, scale);
  Floats result(count);
  for (float& value : result) value = uniform(random);
  return result;
}

// All that comes out of a case, forward and backward.
class Runner {
 public:
  explicit Runner(const Case& c) : c_(c), gates_(num_gates(c.cell)) {
    const int64_t H = c.hidden, P = c.state, scale = 1;
    rows_ = c.steps * c.batch;
    x_ = numbers(rows_ * c.input, scale), grad_y_ = numbers(rows_ * c.directions * P, scale);
    for (int64_t d = 0; d < c.directions; ++d) {
      w_ih_[d] = numbers(gates_ * H * c.input, 0.2f), w_hh_[d] = numbers(gates_ * H * P, 0.2f);
      b_ih_[d] = numbers(gates_ * H, 0.2f), w_hr_[d] = numbers(P * H, 0.2f);
    }
    h0_ = numbers(c.directions * c.batch * P, scale), c0_ = numbers(c.directions * c.batch * H, scale);
    for (int64_t b = 0; b < c.batch; ++b) lengths_.push_back(1 + (b * 7) % c.steps);
  }

  std::vector<Floats> run(int num_threads) {
    const int64_t D = c_.directions, H = c_.hidden, P = c_.state, states = D * c_.batch, all = D * rows_;
    Floats gates(all * gates_ * H), cells(all * H), n_h(all * H), hidden(all * H), y(rows_ * D * P), h_n(states * P),
        c_n(states * H);
    LayerForwardParams f{};
    f.shape = {c_.steps, c_.batch, rows_, H, P, D, c_.cell, ScalarKind::kFloat, 0, 0};
    const bool lstm = c_.cell == CellKind::kLstm, gru = c_.cell == CellKind::kGru, projected = P != H;
    f.save = true, f.gates = gates_ > 1 ? gates.data() : nullptr;
    f.h0 = h0_.data(), f.c0 = lstm ? c0_.data() : nullptr;
    f.lengths = c_.ragged ? lengths_.data() : nullptr;
    f.y = y.data(), f.h_n = h_n.data(), f.c_n = lstm ? c_n.data() : nullptr;
    f.cells = lstm ? cells.data() : nullptr, f.n_h = gru ? n_h.data() : nullptr;
    f.hidden = projected ? hidden.data() : nullptr;
    f.input_size = c_.input, f.x = x_.data();
    for (int64_t d = 0; d < D; ++d) {
      f.w_hh[d] = w_hh_[d].data(), f.w_ih[d] = w_ih_[d].data(), f.b_ih[d] = b_ih_[d].data();
      f.w_hr[d] = projected ? w_hr_[d].data() : nullptr;
    }
    portable::forward(f, num_threads, c_.l2_bytes);

    Floats grad_gates(all * gates_ * H), grad_n_h(all * H), grad_h(all * P), grad_h0(states * P), grad_c0(states * H),
        grad_bias(D * (gates_ + 1) * H), norms(D * rows_), grad_x(rows_ * c_.input);
    LayerBackwardParams b{};
    b.shape = f.shape;
    b.gates = f.gates, b.cells = f.cells, b.n_h = f.n_h, b.y = f.y, b.h0 = f.h0, b.c0 = f.c0, b.lengths = f.lengths;
    std::memcpy(b.w_hh, f.w_hh, sizeof(b.w_hh));
    std::memcpy(b.w_hr, f.w_hr, sizeof(b.w_hr));
    b.grad_y = grad_y_.data();
    b.clip_mode = ClipMode::kNorm, b.clip_threshold = 0.5, b.norms = norms.data();
    b.grad_gates = grad_gates.data(), b.grad_n_h = gru ? grad_n_h.data() : nullptr;
    b.grad_h = projected ? grad_h.data() : nullptr;
    b.grad_h0 = grad_h0.data(), b.grad_c0 = lstm ? grad_c0.data() : nullptr;
    b.grad_bias = grad_bias.data();
    b.input_size = c_.input;
    std::memcpy(b.w_ih, f.w_ih, sizeof(b.w_ih));
    b.grad_x = D == 1 ? grad_x.data() : nullptr;
    portable::backward(b, num_threads, c_.l2_bytes);
    return {y, h_n, c_n, grad_gates, grad_n_h, grad_h, grad_h0, grad_c0, grad_bias, norms, grad_x};
  }

 private:
  const Case c_;
  const int64_t gates_;
  int64_t rows_;
  Floats x_, grad_y_, h0_, c0_, w_ih_[2], w_hh_[2], w_hr_[2], b_ih_[2];
  std::vector<int64_t> lengths_;
};

// Two products with one a^T, of several rounds and more tasks than threads.
class Products {
 public:
  Products() : a_(numbers(kDepth * kRows, 1)), b_{numbers(kDepth * kColumns[0], 1), numbers(kDepth * kColumns[1], 1)} {
    for (int64_t k = 0; k < kDepth; ++k) {
      lines_[0].push_back(&a_[k * kRows]);
      for (int i = 0; i < 2; ++i) lines_[i + 1].push_back(&b_[i][k * kColumns[i]]);
    }
  }

  std::vector<Floats> run(int num_threads, int num_runs) {
    Floats out[] = {Floats(kRows * kColumns[0]), Floats(kRows * kColumns[1])};
    double squares[2] = {};
    const int64_t run_ends[] = {num_runs > 1 ? kDepth / 3 : kDepth, kDepth};
    JointMatmulParams p{};
    p.m = kRows, p.k = kDepth, p.a = lines_[0].data(), p.num_parts = 2, p.scalar = ScalarKind::kFloat;
    for (int i = 0; i < 2; ++i) p.parts[i] = {kColumns[i], lines_[i + 1].data(), out[i].data(), &squares[i]};
    p.num_runs = num_runs, p.run_ends = run_ends;
    portable::joint_matmul(p, num_threads);
    return {out[0], out[1], {static_cast<float>(squares[0]), static_cast<float>(squares[1])}};
  }

 private:
  static constexpr int64_t kRows = 70, kColumns[2] = {13, 30}, kDepth = 7000;
  Floats a_, b_[2];
  std::vector<const void*> lines_[3];
};

bool same(const std::vector<Floats>& a, const std::vector<Floats>& b) {
  for (size_t i = 0; i < a.size(); ++i)
    if (std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)) != 0) return false;
  return true;
}

}  // namespace

int main(int, char** arguments) {
  const int runs = std::atoi(arguments[1]);
  for (int num_runs : {1, 2}) {
    Products products;
    const std::vector<Floats> first = products.run(1, num_runs);
    for (int run = 1; run < runs; ++run) {
      if (same(products.run(2 + run % 2, num_runs), first)) continue;
      std::printf("products, %d runs of k: run %d differs from the first\n", num_runs, run);
      return 1;
    }
  }
  for (const Case& c : kCases) {
    for (int num_threads : {2, 3}) {
      Runner runner(c);
      const std::vector<Floats> first = runner.run(num_threads);
      for (int run = 1; run < runs; ++run) {
        if (same(runner.run(num_threads), first)) continue;
        std::printf("%s: run %d with %d threads differs from the first\n", c.name, run, num_threads);
        return 1;
      }
    }
  }
  std::printf("given away: %lld\n", static_cast<long long>(times_given()));
}
