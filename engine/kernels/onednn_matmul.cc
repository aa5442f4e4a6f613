#include "engine/kernels/onednn_matmul.h"

#include <exception>
#include <map>
#include <tuple>
#include <utility>

#if defined(EMBERGATE_WITH_ONEDNN)
#include <oneapi/dnnl/dnnl.hpp>
#endif

namespace embergate::engine {

#if defined(EMBERGATE_WITH_ONEDNN)

namespace {

using dnnl::matmul;
using dnnl::memory;

// Token counts whose primitives are kept per matrix; a step's count varies, so the oldest choice is simply to start
// over when there are more (a primitive takes well under a millisecond to make).
constexpr size_t kPrimitivesMax = 64;
// The weights' order is chosen for this many tokens and used for all.
constexpr int64_t kTypicalTokens = 256;

struct Runtime {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
};

// Throws dnnl::error if there is no CPU engine.
Runtime& SharedRuntime() {
  static Runtime runtime;
  return runtime;
}

matmul::primitive_desc Describe(const memory::desc& x, const memory::desc& w, const memory::desc& y) {
#if DNNL_VERSION_MAJOR >= 3
  return matmul::primitive_desc(SharedRuntime().engine, x, w, y);
#else
  return matmul::primitive_desc(matmul::desc(x, w, y), SharedRuntime().engine);
#endif
}

memory::desc Rows(int64_t n, int64_t cols, int64_t stride) {
  return memory::desc({n, cols}, memory::data_type::f32, memory::dims{stride, 1});
}

}  // namespace

struct OneDnnWeights::State {
  int64_t rows = 0;
  int64_t cols = 0;
  memory weights;
  std::map<std::tuple<int, int64_t, int64_t>, matmul> primitives;  // by tokens, x_stride, y_stride
};

bool OneDnnWeights::Available() { return true; }

std::unique_ptr<OneDnnWeights> OneDnnWeights::Create(const Matrix& w) {
  try {
    Runtime& runtime = SharedRuntime();
    auto state = std::make_unique<State>();
    state->rows = w.rows();
    state->cols = w.cols();
    const memory::dims shape = {w.cols(), w.rows()};
    const memory::desc any(shape, memory::data_type::f32, memory::format_tag::any);
    const matmul::primitive_desc typical =
        Describe(Rows(kTypicalTokens, w.cols(), w.cols()), any, Rows(kTypicalTokens, w.rows(), w.rows()));
    // The file's order: row r of W is column r of the [cols, rows] operand.
    memory plain(memory::desc(shape, memory::data_type::f32, memory::format_tag::ba), runtime.engine);
    float* values = static_cast<float*>(plain.get_data_handle());
    for (int64_t row = 0; row < w.rows(); ++row) {
      w.DequantizeRowTo(row, values + row * w.cols());
    }
    state->weights = memory(typical.weights_desc(), runtime.engine);
    dnnl::reorder(plain, state->weights).execute(runtime.stream, plain, state->weights);
    runtime.stream.wait();
    return std::unique_ptr<OneDnnWeights>(new OneDnnWeights(std::move(state)));
  } catch (const std::exception&) {  // dnnl::error, bad_alloc
    return nullptr;
  }
}

bool OneDnnWeights::Multiply(const float* x, int n, int64_t x_stride, float* y, int64_t y_stride) {
  try {
    Runtime& runtime = SharedRuntime();
    State& state = *state_;
    const memory::desc x_desc = Rows(n, state.cols, x_stride);
    const memory::desc y_desc = Rows(n, state.rows, y_stride);
    const std::tuple<int, int64_t, int64_t> key(n, x_stride, y_stride);
    auto found = state.primitives.find(key);
    if (found == state.primitives.end()) {
      if (state.primitives.size() >= kPrimitivesMax) {
        state.primitives.clear();
      }
      found = state.primitives.emplace(key, matmul(Describe(x_desc, state.weights.get_desc(), y_desc))).first;
    }
    memory input(x_desc, runtime.engine, const_cast<float*>(x));  // oneDNN's handles are not const; it only reads
    memory output(y_desc, runtime.engine, y);
    found->second.execute(runtime.stream,
                          {{DNNL_ARG_SRC, input}, {DNNL_ARG_WEIGHTS, state.weights}, {DNNL_ARG_DST, output}});
    runtime.stream.wait();
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

size_t OneDnnWeights::bytes() const { return state_->weights.get_desc().get_size(); }

#else  // without oneDNN

struct OneDnnWeights::State {};

bool OneDnnWeights::Available() { return false; }
std::unique_ptr<OneDnnWeights> OneDnnWeights::Create(const Matrix&) { return nullptr; }
bool OneDnnWeights::Multiply(const float*, int, int64_t, float*, int64_t) { return false; }
size_t OneDnnWeights::bytes() const { return 0; }

#endif

OneDnnWeights::OneDnnWeights(std::unique_ptr<State> state) : state_(std::move(state)) {}
OneDnnWeights::~OneDnnWeights() = default;

}  // namespace embergate::engine
