// Arguments straight from Python, without torch's dispatcher, which takes longer than a small layer. Tensors are read through DLPack's C
// exchange API, which torch publishes on its tensor type.
#pragma once

#include <exception>
#include <tuple>
#include <utility>

#include "tensor.h"

#define PY_SSIZE_T_CLEAN
#include <Python.h>

// torch keeps its dlpack.h from those who build for several versions of it, but DLPack has versions of its own (`open_exchange`).
#pragma push_macro("TORCH_TARGET_VERSION")
#undef TORCH_TARGET_VERSION
#include <ATen/dlpack.h>
#pragma pop_macro("TORCH_TARGET_VERSION")

namespace fastrnn::ops::python {

// An argument that these functions do not take, though it may be right: then they do nothing and answer False, and the way through
// the dispatcher is left.
class NotPlain {};

// A Python error is set.
class PythonError {};

// A reference that is given back.
class Owned {
 public:
  explicit Owned(PyObject* object) : object_(object) {}
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() { Py_XDECREF(object_); }
  PyObject* get() const { return object_; }

 private:
  PyObject* object_;
};

struct Exchange {
  const DLPackExchangeAPI* api = nullptr;
  PyTypeObject* tensor = nullptr;
  PyTypeObject* parameter = nullptr;
  PyObject* is_neg = nullptr;  // the method's name
};
inline Exchange exchange;

// Whether tensors of this torch can be read.
inline bool open_exchange(PyObject* tensor, PyObject* parameter) {
  const Owned capsule(PyObject_GetAttrString(tensor, "__dlpack_c_exchange_api__"));
  const void* const found = capsule.get() ? PyCapsule_GetPointer(capsule.get(), "dlpack_exchange_api") : nullptr;
  PyErr_Clear();
  const auto* const api = static_cast<const DLPackExchangeAPI*>(found);
  if (!api || api->header.version.major != DLPACK_MAJOR_VERSION || !api->dltensor_from_py_object_no_sync) return false;
  PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
  if (!is_neg) throw PythonError();
  Py_IncRef(tensor);
  Py_IncRef(parameter);
  exchange = {api, reinterpret_cast<PyTypeObject*>(tensor), reinterpret_cast<PyTypeObject*>(parameter), is_neg};
  return true;
}

inline ScalarType scalar_type_of(DLDataType type) {
  if (type.lanes != 1) throw NotPlain();
  switch (type.code << 8 | type.bits) {
    case kDLFloat << 8 | 16: return ScalarType::Half;
    case kDLFloat << 8 | 32: return ScalarType::Float;
    case kDLFloat << 8 | 64: return ScalarType::Double;
    case kDLBfloat << 8 | 16: return ScalarType::BFloat16;
    case kDLInt << 8 | 64: return ScalarType::Long;
    case kDLBool << 8 | 8: return ScalarType::Bool;
    default: throw NotPlain();
  }
}

// A tensor whose numbers are in the CPU's memory as they are: no subclass, no lazy negative, no zeros without memory.
inline Tensor plain_tensor(PyObject* object) {
  if (Py_TYPE(object) != exchange.tensor && Py_TYPE(object) != exchange.parameter) throw NotPlain();
  DLTensor tensor;
  if (exchange.api->dltensor_from_py_object_no_sync(object, &tensor) != 0) {
    PyErr_Clear();
    throw NotPlain();
  }
  if (tensor.device.device_type != kDLCPU || (tensor.ndim > 0 && !tensor.strides)) throw NotPlain();
  const size_t dim = static_cast<size_t>(tensor.ndim);
  void* const data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  const Tensor view(data, {tensor.shape, dim}, {tensor.strides, dim}, scalar_type_of(tensor.dtype));
  if (!tensor.data && view.numel() > 0) throw NotPlain();
  const Owned is_neg(PyObject_CallMethodObjArgs(object, exchange.is_neg, nullptr));  // DLPack does not tell
  if (is_neg.get() != Py_False) {
    PyErr_Clear();
    throw NotPlain();
  }
  return view;
}

template <typename T>
T argument(PyObject* object);
template <>
inline Tensor argument<Tensor>(PyObject* object) {
  return plain_tensor(object);
}
template <>
inline OptionalTensor argument<OptionalTensor>(PyObject* object) {
  return object == Py_None ? std::nullopt : OptionalTensor(plain_tensor(object));
}
template <>
inline TensorList argument<TensorList>(PyObject* object) {
  if (!PyList_Check(object)) throw NotPlain();
  const Py_ssize_t size = PyList_Size(object);
  TensorList list;
  list.reserve(static_cast<size_t>(size));
  for (Py_ssize_t i = 0; i < size; ++i) list.push_back(plain_tensor(PyList_GetItem(object, i)));
  return list;
}
template <>
inline int64_t argument<int64_t>(PyObject* object) {
  if (!PyLong_Check(object)) throw NotPlain();
  const int64_t value = PyLong_AsLongLong(object);
  if (PyErr_Occurred()) throw PythonError();
  return value;
}
template <>
inline double argument<double>(PyObject* object) {
  if (!PyFloat_Check(object) && !PyLong_Check(object)) throw NotPlain();
  const double value = PyFloat_AsDouble(object);
  if (PyErr_Occurred()) throw PythonError();
  return value;
}
template <>
inline bool argument<bool>(PyObject* object) {
  if (!PyBool_Check(object)) throw NotPlain();
  return object == Py_True;
}

// Calls `function` without the interpreter's lock; what it throws is thrown with the lock.
template <typename Function>
void without_lock(Function function) {
  PyThreadState* const state = PyEval_SaveThread();
  std::exception_ptr error;
  try {
    function();
  } catch (...) {
    error = std::current_exception();
  }
  PyEval_RestoreThread(state);
  if (error) std::rethrow_exception(error);
}

// What `function` answers, a bool, as Python's. What it throws becomes what torch makes of what an operator throws.
template <typename Function>
PyObject* answer(Function function) {
  try {
    return PyBool_FromLong(function());
  } catch (const NotPlain&) {
    return PyBool_FromLong(0);
  } catch (const PythonError&) {
    return nullptr;
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

inline void check_count(Py_ssize_t came, Py_ssize_t expected) {
  if (came == expected && exchange.api) return;
  if (exchange.api)
    PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", expected, came);
  else
    PyErr_SetString(PyExc_TypeError, "initialize() has not been called, or has answered False");
  throw PythonError();
}

// `run`, which an operator has too, as a function of Python: True when it has run, False where an argument is not plain.
template <auto run>
struct Function;
template <typename... Parameters, void (*run)(Parameters...)>
struct Function<run> {
  static PyObject* call(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
    return answer([&] {
      check_count(count, sizeof...(Parameters));
      call_with(arguments, std::index_sequence_for<Parameters...>());
      return true;
    });
  }

 private:
  template <size_t... kIndex>
  static void call_with(PyObject* const* arguments, std::index_sequence<kIndex...>) {
    const std::tuple<std::remove_cvref_t<Parameters>...> values{
        argument<std::remove_cvref_t<Parameters>>(arguments[kIndex])...};
    without_lock([&] { run(std::get<kIndex>(values)...); });
  }
};

template <typename Call>
PyMethodDef method(const char* name, Call* call, const char* documentation) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)), METH_FASTCALL, documentation};
}

}  // namespace fastrnn::ops::python
