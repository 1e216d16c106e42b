// fastrnn._ops_cpu as a Python module: the layers of an RNN in one call, without derivatives, from Python's tensors to the engine
// without torch's dispatcher. That and the Python around an operator cost as much as a small layer's whole sequence does.
//
// Tensors are read through DLPack's C exchange API, which torch publishes on its tensor type. A call that does not fit, in
// whatever way, is refused with False: the way of all other calls (fastrnn/base.py) then runs it or says what is wrong.
#define PY_SSIZE_T_CLEAN
// torch keeps its dlpack.h from those who build for several versions of it, but DLPack has versions of its own (`initialize`).
#undef TORCH_TARGET_VERSION
#include <ATen/dlpack.h>
#include <Python.h>

#include <cstdlib>
#include <exception>
#include <initializer_list>
#include <new>
#include <vector>

#include "../cpu/buffer.h"
#include "cpu.h"

namespace fastrnn::ops {
namespace {

// Set by `initialize`.
const DLPackExchangeAPI* exchange = nullptr;
PyTypeObject* tensor_type = nullptr;
PyTypeObject* parameter_type = nullptr;

bool scalar_kind_of(DLDataType type, ScalarKind& kind) {
  if (type.lanes != 1) return false;
  if (type.code == kDLBfloat && type.bits == 16) return kind = ScalarKind::kBfloat16, true;
  if (type.code != kDLFloat) return false;
  if (type.bits == 32) return kind = ScalarKind::kFloat, true;
  if (type.bits == 64) return kind = ScalarKind::kDouble, true;
  if (type.bits == 16) return kind = ScalarKind::kHalf, true;
  return false;
}

// A dense tensor on the CPU.
struct View {
  DLTensor tensor;
  ScalarKind scalar;

  // False: it is something else.
  bool read(PyObject* object) {
    PyTypeObject* const type = Py_TYPE(object);
    if (type != tensor_type && type != parameter_type) return false;
    if (exchange->dltensor_from_py_object_no_sync(object, &tensor) != 0) {
      PyErr_Clear();
      return false;
    }
    return tensor.device.device_type == kDLCPU && scalar_kind_of(tensor.dtype, scalar) && is_contiguous();
  }

  bool has(std::initializer_list<int64_t> sizes) const {
    if (tensor.ndim != static_cast<int32_t>(sizes.size())) return false;
    const int64_t* size = tensor.shape;
    for (const int64_t expected : sizes)
      if (*size++ != expected) return false;
    return true;
  }

  char* data() const { return static_cast<char*>(tensor.data) + tensor.byte_offset; }

 private:
  bool is_contiguous() const {
    int64_t stride = 1;
    for (int32_t i = tensor.ndim - 1; i >= 0; --i) {
      if (tensor.shape[i] != 1 && tensor.strides && tensor.strides[i] != stride) return false;
      stride *= tensor.shape[i];
    }
    return true;
  }
};

constexpr int64_t kMostLayers = 1 << 20;  // far from where numbers of weights overflow

// All layers: what `run` was given, checked.
struct Network {
  CellKind cell;
  int64_t layers, directions, per_direction;  // per_direction: weights of a layer's direction
  int64_t steps, batch, input_size, hidden_size, state_size;
  bool has_bias, projects;
  View x, h0, c0, y, h_n, c_n;
  bool has_states;
  std::vector<View> weights;  // torch's order: w_ih, w_hh, b_ih, b_hh, w_hr

  const View& weight(int64_t layer, int64_t d, int64_t index) const {
    return weights[static_cast<size_t>((layer * directions + d) * per_direction + index)];
  }
  int64_t input_size_of(int64_t layer) const { return layer == 0 ? input_size : directions * state_size; }
};

bool fits(const View& view, ScalarKind scalar, std::initializer_list<int64_t> sizes) {
  return view.scalar == scalar && view.has(sizes);
}

bool read_weights(Network& net, PyObject* list) {
  const Py_ssize_t count = PyList_Size(list);
  const int64_t groups = net.layers * net.directions;
  if (count <= 0 || count % groups) return false;
  net.per_direction = count / groups;
  if (net.per_direction < 2 || net.per_direction > 5) return false;
  net.has_bias = net.per_direction >= 4;
  net.projects = net.per_direction == 3 || net.per_direction == 5;
  if (net.projects && net.cell != CellKind::kLstm) return false;
  net.weights.resize(static_cast<size_t>(count));
  for (Py_ssize_t i = 0; i < count; ++i)
    if (!net.weights[static_cast<size_t>(i)].read(PyList_GetItem(list, i))) return false;

  const View& w_hh = net.weight(0, 0, 1);
  const int64_t gates = num_gates(net.cell);
  if (w_hh.tensor.ndim != 2 || w_hh.tensor.shape[0] < gates || w_hh.tensor.shape[1] < 1) return false;
  net.hidden_size = w_hh.tensor.shape[0] / gates;
  net.state_size = w_hh.tensor.shape[1];
  if (!net.projects && net.state_size != net.hidden_size) return false;
  const int64_t width = gates * net.hidden_size;
  const ScalarKind scalar = net.x.scalar;
  for (int64_t layer = 0; layer < net.layers; ++layer) {
    for (int64_t d = 0; d < net.directions; ++d) {
      const bool fit = fits(net.weight(layer, d, 0), scalar, {width, net.input_size_of(layer)}) &&
                       fits(net.weight(layer, d, 1), scalar, {width, net.state_size}) &&
                       (!net.has_bias || (fits(net.weight(layer, d, 2), scalar, {width}) &&
                                          fits(net.weight(layer, d, 3), scalar, {width}))) &&
                       (!net.projects ||
                        fits(net.weight(layer, d, net.per_direction - 1), scalar, {net.state_size, net.hidden_size}));
      if (!fit) return false;
    }
  }
  return true;
}

// Whether a variable asks for something that is checked, and perhaps refused, on the other way (fastrnn/backends.py: check_plans).
bool is_set(const char* variable) {
  const char* const value = std::getenv(variable);
  return value && *value;
}

// arguments: cell, layers, directions, x, weights, h0, c0, y, h_n, c_n
bool read_network(Network& net, PyObject* const* arguments) {
  const int64_t cell = PyLong_AsLongLong(arguments[0]);
  net.layers = PyLong_AsLongLong(arguments[1]);
  net.directions = PyLong_AsLongLong(arguments[2]);
  if (PyErr_Occurred()) return false;
  if (cell < 0 || cell > static_cast<int64_t>(CellKind::kGru)) return false;
  if (net.layers < 1 || net.layers > kMostLayers || net.directions < 1 || net.directions > 2) return false;
  net.cell = static_cast<CellKind>(cell);
  if (is_set("FASTRNN_PLANS") || is_set("FASTRNN_WAVEFRONT")) return false;
  if (!net.x.read(arguments[3]) || net.x.tensor.ndim != 3) return false;
  net.steps = net.x.tensor.shape[0], net.batch = net.x.tensor.shape[1], net.input_size = net.x.tensor.shape[2];
  if (net.steps < 1 || net.batch < 1 || net.input_size < 1) return false;
  if (!read_weights(net, arguments[4])) return false;

  const ScalarKind scalar = net.x.scalar;
  const int64_t states = net.layers * net.directions;
  const bool has_cell = net.cell == CellKind::kLstm;
  const auto read_state = [&](PyObject* object, View& view, int64_t size) {
    return view.read(object) && fits(view, scalar, {states, net.batch, size});
  };
  net.has_states = arguments[5] != Py_None;
  if (net.has_states && !read_state(arguments[5], net.h0, net.state_size)) return false;
  if (net.has_states && has_cell && !read_state(arguments[6], net.c0, net.hidden_size)) return false;
  if (!net.y.read(arguments[7]) || !fits(net.y, scalar, {net.steps, net.batch, net.directions * net.state_size}))
    return false;
  if (!read_state(arguments[8], net.h_n, net.state_size)) return false;
  return !has_cell || read_state(arguments[9], net.c_n, net.hidden_size);
}

// `x`: the layer's input.
void run_one(const Network& net, int64_t layer, const void* x, void* y) {
  cpu::LayerForwardParams params{};
  params.shape.steps = net.steps, params.shape.batch = net.batch, params.shape.rows = net.steps * net.batch;
  params.shape.hidden_size = net.hidden_size, params.shape.state_size = net.state_size;
  params.shape.directions = net.directions;
  params.shape.cell = net.cell, params.shape.scalar = net.x.scalar;
  const int64_t element = bytes_of(net.x.scalar);
  const int64_t of_state = layer * net.directions * net.batch * net.state_size * element;
  const int64_t of_cell = layer * net.directions * net.batch * net.hidden_size * element;
  params.input_size = net.input_size_of(layer);
  params.x = x, params.y = y;
  params.h_n = net.h_n.data() + of_state;
  if (net.has_states) params.h0 = net.h0.data() + of_state;
  if (net.cell == CellKind::kLstm) {
    params.c_n = net.c_n.data() + of_cell;
    if (net.has_states) params.c0 = net.c0.data() + of_cell;
  }
  for (int64_t d = 0; d < net.directions; ++d) {
    params.w_ih[d] = net.weight(layer, d, 0).data();
    params.w_hh[d] = net.weight(layer, d, 1).data();
    if (net.has_bias) {
      params.b_ih[d] = net.weight(layer, d, 2).data();
      params.b_hh[d] = net.weight(layer, d, 3).data();
    }
    if (net.has_bias && net.cell == CellKind::kGru)
      params.b_hn[d] = net.weight(layer, d, 3).data() + 2 * net.hidden_size * element;
    if (net.projects) params.w_hr[d] = net.weight(layer, d, net.per_direction - 1).data();
  }
  run_layer(params);
}

void run_all(const Network& net) {
  const int64_t bytes = net.steps * net.batch * net.directions * net.state_size * bytes_of(net.x.scalar);
  cpu::Buffer between[2];  // outputs of the layers before the last
  const void* x = net.x.data();
  for (int64_t layer = 0; layer < net.layers; ++layer) {
    void* y = net.y.data();
    if (layer < net.layers - 1) {
      cpu::Buffer& buffer = between[layer % 2];
      if (layer < 2) buffer.allocate(bytes);
      y = buffer.as<void>();
    }
    run_one(net, layer, x, y);
    x = y;
  }
}

PyObject* run(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 10 || !exchange || !PyList_Check(arguments[4])) {
    PyErr_SetString(PyExc_TypeError,
                    "run(cell, layers, directions, x, weights: list, h0, c0, y, h_n, c_n), after initialize()");
    return nullptr;
  }
  // What is thrown, as torch makes it of what an operator throws.
  try {
    Network net{};
    if (!read_network(net, arguments)) {
      if (PyErr_Occurred()) return nullptr;
      return PyBool_FromLong(0);
    }
    PyThreadState* const state = PyEval_SaveThread();
    std::exception_ptr error;
    try {
      run_all(net);
    } catch (...) {
      error = std::current_exception();
    }
    PyEval_RestoreThread(state);
    if (error) std::rethrow_exception(error);
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  return PyBool_FromLong(1);
}

PyObject* initialize(PyObject*, PyObject* arguments) {
  PyObject *tensor, *parameter;
  if (!PyArg_ParseTuple(arguments, "OO", &tensor, &parameter)) return nullptr;
  PyObject* const capsule = PyObject_GetAttrString(tensor, "__dlpack_c_exchange_api__");
  if (!capsule) {
    PyErr_Clear();
    return PyBool_FromLong(0);
  }
  const auto* found = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  Py_DecRef(capsule);
  if (!found) PyErr_Clear();
  if (!found || found->header.version.major != DLPACK_MAJOR_VERSION || !found->dltensor_from_py_object_no_sync)
    return PyBool_FromLong(0);
  exchange = found;
  Py_IncRef(tensor);
  Py_IncRef(parameter);
  tensor_type = reinterpret_cast<PyTypeObject*>(tensor);
  parameter_type = reinterpret_cast<PyTypeObject*>(parameter);
  return PyBool_FromLong(1);
}

PyMethodDef methods[] = {
    {"initialize", initialize, METH_VARARGS,
     "initialize(Tensor, Parameter) -> bool: whether this torch lets tensors be read; run() may be called then."},
    {"run", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(run)), METH_FASTCALL,
     "run(cell, layers, directions, x, weights, h0, c0, y, h_n, c_n) -> bool: fills y, h_n and c_n; False: it does not "
     "fit."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT, "_ops_cpu", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace fastrnn::ops

PyMODINIT_FUNC PyInit__ops_cpu() { return PyModule_Create(&fastrnn::ops::module_definition); }
