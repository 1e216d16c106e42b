// fastrnn._ops_cpu as a Python module: the engine's functions for those who need nothing of torch's dispatcher (python.h).
#include "python.h"

#include <cstdlib>

#include "../cpu/work_queue.h"
#include "dropout.h"
#include "layer.h"
#include "network.h"

namespace fastrnn::ops::python {
namespace {

PyObject* initialize(PyObject*, PyObject* arguments) {
  PyObject *tensor, *parameter;
  if (!PyArg_ParseTuple(arguments, "OO", &tensor, &parameter)) return nullptr;
  return answer([&] { return open_exchange(tensor, parameter); });
}

// Whether a variable asks for what is checked, and perhaps refused, on the other way (fastrnn/backends.py: check_plans).
bool is_set(const char* variable) {
  const char* const value = std::getenv(variable);
  return value && *value;
}

PyObject* run_network(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return answer([&] {
    check_count(count, 10);
    const int64_t cell = argument<int64_t>(arguments[0]), layers = argument<int64_t>(arguments[1]),
                  directions = argument<int64_t>(arguments[2]);
    const Tensor x = argument<Tensor>(arguments[3]);
    const TensorList weights = argument<TensorList>(arguments[4]);
    const OptionalTensor h0 = argument<OptionalTensor>(arguments[5]), c0 = argument<OptionalTensor>(arguments[6]);
    const Tensor y = argument<Tensor>(arguments[7]), h_n = argument<Tensor>(arguments[8]);
    const OptionalTensor c_n = argument<OptionalTensor>(arguments[9]);
    const Network network(cell, layers, directions, x, weights, h0, c0, y, h_n, c_n);
    if (!network.fits() || is_set("FASTRNN_PLANS") || is_set("FASTRNN_WAVEFRONT")) return false;
    without_lock([&] { network.run(); });
    return true;
  });
}

PyObject* times_given(PyObject*, PyObject*) { return PyLong_FromLongLong(cpu::times_given()); }

PyMethodDef methods[] = {{"initialize", initialize, METH_VARARGS,
                          "initialize(Tensor, Parameter) -> bool: whether this torch lets tensors be read; the other "
                          "functions may be called then."},
                         method("run_network", run_network,
                                "run_network(cell, layers, directions, x, weights, h0, c0, y, h_n, c_n) -> bool: fills "
                                "y, h_n and c_n, all layers "
                                "without derivatives; False: the arguments are not plain, or do not fit together."),
                         method("layer_forward", Function<&ops::layer_forward<run_layer>>::call,
                                "The operator's arguments -> bool; False: they are not plain."),
                         method("layer_backward", Function<&ops::layer_backward<run_layer_backward>>::call,
                                "The operator's arguments -> bool; False: they are not plain."),
                         method("dropout_factors_", Function<&ops::dropout_factors<draw_dropout>>::call,
                                "The operator's arguments -> bool; False: they are not plain."),
                         {"times_given", times_given, METH_NOARGS,
                          "times_given() -> int: how often a thread of a recurrence has given work to another one."},
                         {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_ops_cpu", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace fastrnn::ops::python

PyMODINIT_FUNC PyInit__ops_cpu() { return PyModule_Create(&fastrnn::ops::python::definition); }
