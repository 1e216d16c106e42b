"""PyTorch's own database of module samples and error cases, with fastrnn's classes in place of torch.nn's."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from compare import assert_bit_equal, assert_equal_to_rounding, gradients, noncontiguous, tensors
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence
from torch.testing._internal.common_modules import ModuleErrorEnum, ModuleInput, module_db

import fastrnn

NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
INFOS = {info.module_cls.__name__: info for info in module_db if info.module_cls in {getattr(nn, n) for n in NAMES}}

every_class = pytest.mark.parametrize("name", NAMES)
every_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def test_the_database_has_all_six_classes():
    assert set(INFOS) == set(NAMES)


def samples(
    name: str, device: torch.device, dtype: torch.dtype, training: bool, requires_grad: bool = False
) -> Iterator[tuple[ModuleInput, nn.Module, nn.Module, tuple[Any, ...]]]:
    """(sample, torch.nn's module, ours with the same numbers, arguments of forward) of each sample."""
    info = INFOS[name]
    for sample in info.module_inputs_func(
        info, device=device, dtype=dtype, requires_grad=requires_grad, training=training,
        **({} if name.endswith("Cell") else {"with_packed_sequence": True}),
    ):  # fmt: skip
        arguments = sample.constructor_input
        theirs = info.module_cls(*arguments.args, **arguments.kwargs, device=device, dtype=dtype).train(training)
        ours = getattr(fastrnn, name)(*arguments.args, **arguments.kwargs, device=device, dtype=dtype).train(training)
        ours.load_state_dict(theirs.state_dict())
        yield sample, theirs, ours, sample.forward_input.args


def replace_tensors(value: Any, convert: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return convert(value)
    if isinstance(value, PackedSequence):
        return value._replace(data=convert(value.data))
    return tuple(replace_tensors(part, convert) for part in value)


def floating(value: Any) -> list[torch.Tensor]:
    return [tensor for tensor in tensors(value) if tensor.is_floating_point()]


@every_mode
@every_dtype
@every_class
def test_outputs_and_gradients_equal_torch_nn(backend, device, name, dtype, training):
    count = 0
    for _, theirs, ours, inputs in samples(name, device, dtype, training, requires_grad=True):
        expected, output = theirs(*inputs), ours(*inputs)
        assert type(output) is type(expected)
        assert_equal_to_rounding(output, expected)
        leaves = floating(inputs)
        assert_equal_to_rounding(
            gradients(floating(output), [*leaves, *ours.parameters()]),
            gradients(floating(expected), [*leaves, *theirs.parameters()]),
        )
        count += 1
    assert count >= 2


@every_mode
@every_dtype
@every_class
def test_reference_functions_of_the_samples_agree(backend, device, name, dtype, training):
    checked = 0
    for sample, _, ours, inputs in samples(name, device, dtype, training):
        if isinstance(inputs[0], PackedSequence):
            continue  # the database's reference for it does not fit: it adds a batch dimension
        expected = sample.reference_fn(ours, *inputs)
        assert_equal_to_rounding(ours(*inputs), expected)
        checked += 1
    assert checked >= 2


@every_mode
@every_dtype
@every_class
def test_error_samples_raise_as_the_database_says(backend, device, name, dtype, training):
    info = INFOS[name]
    make = getattr(fastrnn, name)
    error_inputs = info.module_error_inputs_func(
        info, device=device, dtype=dtype, requires_grad=False, training=training
    )
    assert error_inputs
    for error in error_inputs:
        arguments = error.module_error_input.constructor_input
        expected = pytest.raises(error.error_type, match=error.error_regex)
        if error.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
            with expected:
                make(*arguments.args, **arguments.kwargs)
            continue
        placed = {"device": device, "dtype": dtype, **arguments.kwargs}
        module = make(*arguments.args, **placed).train(training)
        with expected:
            module(*error.module_error_input.forward_input.args)


def as_function(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Callable[..., Any], list[torch.Tensor]]:
    """The module as a function of the tensors of its inputs and parameters, and those."""
    leaves, parameters = floating(inputs), dict(module.named_parameters())

    def call(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = iter(values)
        args = replace_tensors(inputs, lambda _: next(given))
        output = torch.func.functional_call(module, dict(zip(parameters, given, strict=True)), args)
        return tuple(floating(output))

    return call, [*leaves, *parameters.values()]


@every_mode
@every_class
def test_gradcheck_of_the_samples(backend, device, name, training):
    """In eval, where the modules compute the same, of a selection."""
    step = 1 if training else 5
    for _, _, ours, inputs in itertools.islice(
        samples(name, device, torch.float64, training, requires_grad=True), 0, None, step
    ):
        assert gradcheck(*as_function(ours, inputs), fast_mode=True)


@every_class
def test_gradgradcheck_of_a_selection_of_the_samples(backend, device, name):
    step = 1 if name.endswith("Cell") else 7
    for _, _, ours, inputs in itertools.islice(
        samples(name, device, torch.float64, True, requires_grad=True), 0, None, step
    ):
        assert gradgradcheck(*as_function(ours, inputs), fast_mode=True)


@every_class
def test_inputs_may_be_anywhere_in_memory(backend, device, name):
    for _, _, ours, inputs in samples(name, device, torch.float64, True):
        scattered = replace_tensors(inputs, lambda t: noncontiguous(t) if t.is_floating_point() else t)
        assert not any(t.is_contiguous() for t in floating(scattered) if t.numel() > 1)
        output, expected = ours(*scattered), ours(*inputs)
        assert_equal_to_rounding(output, expected)
        parameters = list(ours.parameters())
        assert_equal_to_rounding(gradients(floating(output), parameters), gradients(floating(expected), parameters))


@every_class
def test_repr_is_torch_nn_s(name):
    for _, theirs, ours, _ in samples(name, torch.device("cpu"), torch.float32, True):
        assert repr(ours) == repr(theirs)


@every_class
def test_pickles_and_copies_compute_the_same(backend, device, name):
    for index, (_, _, ours, inputs) in enumerate(samples(name, device, torch.float32, True)):
        if index % 4:
            continue
        output = ours(*inputs)
        for other in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
            assert type(other) is type(ours)
            assert repr(other) == repr(ours)
            assert not {id(p) for p in other.parameters()} & {id(p) for p in ours.parameters()}
            assert_bit_equal(other(*inputs), output)


@every_class
def test_state_dicts_go_both_ways(name):
    for _, theirs, ours, _ in samples(name, torch.device("cpu"), torch.float32, True):
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
        for parameter in ours.parameters():
            nn.init.normal_(parameter)
        theirs.load_state_dict(ours.state_dict())
        assert_bit_equal(list(theirs.parameters()), list(ours.parameters()))


@every_class
def test_start_values_are_torch_nn_s_from_the_same_seed(name):
    for sample in INFOS[name].module_inputs_func(
        INFOS[name], device="cpu", dtype=torch.float32, requires_grad=False, training=True
    ):
        arguments = sample.constructor_input
        torch.manual_seed(3)
        theirs = getattr(nn, name)(*arguments.args, **arguments.kwargs)
        torch.manual_seed(3)
        ours = getattr(fastrnn, name)(*arguments.args, **arguments.kwargs)
        assert_bit_equal(list(ours.parameters()), list(theirs.parameters()))


@every_class
def test_device_and_dtype_arguments_are_kept(backend, device, name):
    """As torch.nn's test_factory_kwargs: on the meta device nothing may be made elsewhere."""
    assert {"device", "dtype"} <= set(inspect.signature(getattr(fastrnn, name)).parameters)
    for where, dtype in ((device, torch.float64), (torch.device("meta"), torch.float16)):
        module = getattr(fastrnn, name)(3, 4, device=where, dtype=dtype)
        assert all(p.device.type == where.type and p.dtype == dtype for p in module.parameters())


@every_class
def test_moving_to_another_dtype_and_back_from_meta(backend, device, name):
    module = getattr(fastrnn, name)(3, 4)
    assert module.to(device, torch.float64) is module
    assert all(p.dtype == torch.float64 and p.device.type == device.type for p in module.parameters())
    module(torch.randn(2, 3, dtype=torch.float64, device=device))
    empty = getattr(fastrnn, name)(3, 4, device="meta").to_empty(device=device)
    empty.reset_parameters()
    empty(torch.randn(2, 3, device=device))
