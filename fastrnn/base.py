"""What RNN, LSTM and GRU share: parameters, layers, masks, the order of samples, and the recorded norms."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable
from typing import Any, cast, overload

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from fastrnn import backends, batches, inference, recording, wavefronts
from fastrnn.apply import is_transformed, run_layer
from fastrnn.batches import Batch
from fastrnn.functions import GRUFunction, LSTMFunction, Options, RNNFunction
from fastrnn.masks import Masks
from fastrnn.options import RecurrentOptions, check_options
from fastrnn.reference import compute_dtype
from fastrnn.stacks import Cut, StackFunction

_FUNCTIONS = {"RNN_TANH": RNNFunction, "RNN_RELU": RNNFunction, "LSTM": LSTMFunction, "GRU": GRUFunction}


def autocast_dtype(x: Tensor) -> torch.dtype:
    """What autocast, where it is on for x's device, makes of x: as for torch's products, float64 stays."""
    kind = x.device.type
    if x.dtype == torch.float64 or not (kind in ("cpu", "cuda") or torch.amp.is_autocast_available(kind)):
        return x.dtype
    if not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


class RNNBase(nn.RNNBase):
    """What RNN, LSTM and GRU share. Use those."""

    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    recurrent_dropout_mode: str = "state"
    state_grad_clip: float | None = None
    state_grad_clip_mode: str = "norm"
    record_state_grad_norms: bool = False
    forget_bias: float | None = None
    mc_dropout: bool
    grad_scale: Tensor | None

    def __init__(self, mode: str, *args: Any, options: RecurrentOptions, **kwargs: Any) -> None:
        options = check_options(mode, options)
        if options.forget_bias is not None and not kwargs.get("bias", True):
            raise ValueError("forget_bias needs bias=True")
        # reset_parameters reads it within torch's __init__, before which nn.Module takes no attributes
        object.__setattr__(self, "forget_bias", options.forget_bias)
        super().__init__(mode, *args, **kwargs)
        for name, value in options._asdict().items():
            setattr(self, name, value)
        self.mc_dropout = False
        self.grad_scale = None
        self._masks = Masks()
        self._open_recording()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in RecurrentOptions._fields:
            value = getattr(check_options(self.mode, RecurrentOptions(**{name: value})), name)
        elif name == "mc_dropout" and not isinstance(value, bool):
            raise TypeError(f"mc_dropout should be of type bool, got: {type(value).__name__}")
        super().__setattr__(name, value)

    # ------------------------------------------------------------------------------------------------- parameters

    def reset_parameters(self) -> None:
        """Draw all parameters as torch.nn does; then, with ``forget_bias``, set the forget gate's bias to it."""
        super().reset_parameters()
        if self.forget_bias is None:
            return
        forget = slice(self.hidden_size, 2 * self.hidden_size)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.startswith("bias_ih"):
                    parameter[forget] = self.forget_bias
                elif name.startswith("bias_hh"):
                    parameter[forget] = 0.0

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels take each parameter where it is. torch.nn's method packs them for cuDNN."""

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        state.pop("_record_base", None)
        state.pop("_record_slots", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._open_recording()

    # -------------------------------------------------------------------------------------------------- recording

    def _open_recording(self) -> None:
        keys = recording.new_keys(self.num_layers)
        self._record_base = keys.start
        # one per layer: torch.compile keeps the last change of a tensor alone
        self._record_slots = [torch.zeros(1) for _ in keys]
        weakref.finalize(self, recording.forget, keys)

    def _recorded(self) -> list[recording.Recorded] | None:
        layers = [recording.recorded(self._record_base + layer) for layer in range(self.num_layers)]
        found = [layer for layer in layers if layer is not None]
        return found if len(found) == self.num_layers else None

    @property
    def state_grad_norms(self) -> Tensor | None:
        """Norms of the recurrent gradient in the last backward, before clipping, loss scale taken out.

        ``[l * num_directions + d, t, b]`` is the L2 norm, for sample b, of the gradient that reaches the state after step t from
        step t + 1 (at a sample's last step: from h_n, c_n); 0 past a length. float32 (float64 for float64). None before the
        first backward or without ``record_state_grad_norms=True``.
        """
        layers = self._recorded() if self.record_state_grad_norms else None
        return None if layers is None else torch.cat([layer.norms for layer in layers])

    @property
    def state_grad_clipped(self) -> Tensor | None:
        """Where ``state_grad_clip`` changed that gradient (value mode: any element of it); bool, same shape, or None."""
        layers = self._recorded() if self.record_state_grad_norms else None
        if layers is None or self.state_grad_clip is None:
            return None
        return torch.cat([layer.clipped for layer in layers])

    def hold_masks(self) -> contextlib.AbstractContextManager[None]:
        """Use the same variational masks for every forward in this block, as truncated backpropagation needs.

        Each mask (``input_dropout``, ``recurrent_dropout``) is drawn at its first use. torch.nn's elementwise ``dropout`` is
        drawn at each step anyway and stays so.

        Raises (in forward):
            RuntimeError: the batch size changed.
        """
        return self._masks.hold()

    def to_torch(self) -> nn.Module:
        """The torch.nn module with the same Parameter objects; options that it lacks are named in a warning and lost."""
        from fastrnn.convert import to_torch  # convert knows the classes below

        return to_torch(self)

    # ---------------------------------------------------------------------------------------------------- forward

    def extra_repr(self) -> str:
        text = super().extra_repr()
        for name, default in RecurrentOptions._field_defaults.items():
            value = getattr(self, name)
            if value != default:
                text += f", {name}={value!r}"
        return text

    @property
    def _num_directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _state_size(self) -> int:
        return self.proj_size if self.proj_size > 0 else self.hidden_size

    def _check_states(self, hx: Any, dims: int) -> list[Tensor]:
        """``hx`` as given, as a list: [h] or [h, c]."""
        name = type(self).__name__
        if self.mode == "LSTM":
            if not isinstance(hx, (tuple, list)) or len(hx) != 2 or not all(isinstance(t, Tensor) for t in hx):
                raise TypeError(f"{name}: hx should be a tuple of two tensors (h_0, c_0), got {_describe(hx)}")
            states = list(hx)
            if any(t.dim() != dims for t in states):
                kind = "batched 3-D" if dims == 3 else "unbatched 2-D"
                raise RuntimeError(
                    f"For {kind} input, hx and cx should also be {dims}-D but got "
                    f"({states[0].dim()}-D, {states[1].dim()}-D) tensors"
                )
        else:
            if not isinstance(hx, Tensor):
                raise TypeError(f"{name}: hx should be a tensor h_0, got {_describe(hx)}")
            states = [hx]
            if hx.dim() != dims:
                kind = "batched 3-D" if dims == 3 else "unbatched 2-D"
                raise RuntimeError(f"For {kind} input, hx should also be {dims}-D but got {hx.dim()}-D tensor")
        return states

    def _initial_states(self, states: list[Tensor] | None, batch: Batch, dtype: torch.dtype) -> list[Tensor]:
        """Checked states (layers * directions, B, ·) in the batch's order and dtype; zeros if none are given."""
        sizes = [self._state_size] if self.mode != "LSTM" else [self._state_size, self.hidden_size]
        first = self.num_layers * self._num_directions
        if states is None:
            h0 = torch.zeros(first, batch.size, sizes[0], dtype=dtype, device=batch.data.device)
            # torch.compile takes no tensor twice
            shared = sizes[-1] == sizes[0] and not torch.compiler.is_compiling()
            return [h0] if len(sizes) == 1 else [h0, h0 if shared else h0.new_zeros((first, batch.size, sizes[1]))]
        message = "Expected hidden size {}, got {}"
        if self.mode == "LSTM":
            message = "Expected hidden[{}] size {}, got {}"
        for index, (state, size) in enumerate(zip(states, sizes, strict=True)):
            if tuple(state.shape) != (first, batch.size, size):
                values: tuple[Any, ...] = ((first, batch.size, size), list(state.shape))
                raise RuntimeError(message.format(*((index, *values) if self.mode == "LSTM" else values)))
            if state.device != batch.data.device:
                raise RuntimeError(
                    f"Input and hidden tensors are not at the same device, found input tensor at {batch.data.device} "
                    f"and hidden tensor at {state.device}"
                )
            if state.dtype != dtype and dtype == batch.data.dtype:
                raise ValueError(
                    f"{type(self).__name__}: hx has dtype {state.dtype}, but the input has {dtype}. "
                    f"Convert it: hx.to({dtype})"
                )
        return [batch.sort(state).to(dtype) for state in states]

    def _check_grad_scale(self) -> None:
        scale = self.grad_scale
        if not isinstance(scale, Tensor) or scale.dtype != torch.float32 or scale.dim() != 0:
            got = f"{scale.dtype} of shape {tuple(scale.shape)}" if isinstance(scale, Tensor) else repr(scale)
            raise TypeError(f"{type(self).__name__}: grad_scale should be a 0-dim float32 tensor or None, got {got}")

    def _check_data(self, data: Tensor) -> torch.dtype:
        """Dimension is checked by now: dtype, width and device. Returns the dtype to compute in."""
        weight = getattr(self, self._flat_weights_names[0])
        dtype = autocast_dtype(data)
        casts = data.is_floating_point() and dtype != data.dtype
        if data.dtype != weight.dtype and not casts:
            raise ValueError(
                f"RNN input dtype ({data.dtype}) does not match weight dtype ({weight.dtype}). "
                f"Convert input: input.to({weight.dtype}), or convert model: model.to({data.dtype})"
            )
        if data.size(-1) != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {data.size(-1)}"
            )
        if data.device != weight.device:
            raise RuntimeError(
                f"Input and parameter tensors are not at the same device, found input tensor at {data.device} "
                f"and parameter tensor at {weight.device}"
            )
        return dtype

    def _layer_weights(self, layer: int) -> list[Tensor]:
        """torch's order, one direction after the other. By attribute where it is no parameter, so that parametrisations act."""
        count = len(self._flat_weights_names) // self.num_layers
        names = self._flat_weights_names[layer * count : (layer + 1) * count]
        parameters = self._parameters
        if all(name in parameters for name in names):
            return [cast(Tensor, parameters[name]) for name in names]
        return [cast(Tensor, getattr(self, name)) for name in names]

    def _draw(self, layer: int, batch: Batch) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
        """A layer's weights; factors of its input, broadcast over rows; its recurrent mask. As this forward drops them."""
        weights, data = self._layer_weights(layer), batch.data
        factors = mask = None
        if not (self.training or self.mc_dropout):
            return weights, factors, mask
        num_directions, p = self._num_directions, self.recurrent_dropout
        if self.input_dropout > 0:
            width = self.input_size if layer == 0 else num_directions * self._state_size
            factors = self._masks.draw(f"input mask {layer}", self.input_dropout, (batch.size, width), data, data.dtype)
            factors = batch.per_sample(factors)
        if p > 0 and self.recurrent_dropout_mode == "weight":
            count = len(weights) // num_directions
            for d in range(num_directions):
                w_hh = weights[d * count + 1]
                keep = self._masks.draw(f"weight mask {layer} {d}", p, tuple(w_hh.shape), w_hh, w_hh.dtype)
                weights[d * count + 1] = w_hh * keep
        elif p > 0:
            width = self.hidden_size if self.recurrent_dropout_mode == "candidate" else self._state_size
            size = (num_directions, batch.size, width)
            mask = batch.sort(self._masks.draw(f"recurrent mask {layer}", p, size, data, compute_dtype(data.dtype)))
        return weights, factors, mask

    def _layer_options(self, backend: str, layer: int, inputs: Iterable[Tensor]) -> Options:
        """``inputs``: what may want a gradient."""
        return Options(
            nonlinearity="relu" if self.mode == "RNN_RELU" else "tanh",
            dropout_site="candidate" if self.recurrent_dropout_mode == "candidate" else "state",
            clip_mode=None if self.state_grad_clip is None else self.state_grad_clip_mode,
            clip_threshold=self.state_grad_clip or 0.0,
            backend=backend,
            save=torch.is_grad_enabled() and any(t.requires_grad for t in inputs),
            record_key=self._record_base + layer if self.record_state_grad_norms else -1,
        )

    def _scale_of_gradients(self) -> Tensor | None:
        if self.grad_scale is not None:
            self._check_grad_scale()
        return self.grad_scale if self.record_state_grad_norms or self.state_grad_clip is not None else None

    def _run_layers(self, batch: Batch, states: list[Tensor], backend: str) -> tuple[Tensor, list[Tensor]]:
        """All layers: rows of the last layer's y, and the final states (layers * directions, B, ·), in the batch's order."""
        self._masks.check_batch(batch.size)
        grad_scale = self._scale_of_gradients()
        x, num_directions = batch.data, self._num_directions
        if self.num_layers > 1 and backend in ("cuda", "emulated") and not is_transformed():
            is_ragged = batch.lengths is not None or batch.offsets is not None
            choice = wavefronts.choice_for(self, x.dtype, x.device, x.size(0), batch.size, backend, is_ragged=is_ragged)
            if choice.cut is not None:
                return self._run_stack(batch, states, backend, grad_scale, choice.cut)
        record = self.record_state_grad_norms
        finals: list[list[Tensor]] = []
        for layer in range(self.num_layers):
            weights, factors, mask = self._draw(layer, batch)
            if factors is not None:
                x = x * factors
            of_layer = slice(layer * num_directions, (layer + 1) * num_directions)
            h0, *cells = states if self.num_layers == 1 else [state[of_layer] for state in states]
            c0 = cells[0] if cells else None
            options = self._layer_options(backend, layer, (x, *states, *weights))
            y, h_n, c_n, *_ = run_layer(
                _FUNCTIONS[self.mode], options, self._record_slots[layer] if record else None, batch.lengths, batch.offsets, batch.unsorted_indices, mask, grad_scale,
                x, h0, c0, *weights,
            )  # fmt: skip
            finals.append([h_n] if c_n is None else [h_n, c_n])
            x = y
            if layer < self.num_layers - 1 and self.dropout > 0:
                x = functional.dropout(x, self.dropout, training=self.training or self.mc_dropout)
        if self.num_layers == 1:
            return x, finals[0]
        return x, [torch.cat(parts) for parts in zip(*finals, strict=True)]

    def _run_stack(
        self, batch: Batch, states: list[Tensor], backend: str, grad_scale: Tensor | None, cut: Cut
    ) -> tuple[Tensor, list[Tensor]]:
        """All layers at once (``fastrnn.stacks``)."""
        x, dropping = batch.data, self.training or self.mc_dropout
        weights: list[Tensor] = []
        masks: list[Tensor] = []
        noise = None  # what the outputs of all layers but the last are multiplied with
        if dropping and (self.dropout > 0 or self.input_dropout > 0):
            noise = x.new_empty((self.num_layers - 1, *x.shape[:2], self.hidden_size))
        for layer in range(self.num_layers):
            of_layer, factors, mask = self._draw(layer, batch)
            weights += of_layer
            masks += [] if mask is None else [mask]
            if factors is not None and layer == 0:
                x = x * factors
            elif factors is not None and noise is not None:
                noise[layer - 1].mul_(factors)
            if noise is not None and layer < self.num_layers - 1:
                noise[layer].copy_(functional.dropout(torch.ones_like(noise[layer]), self.dropout, training=dropping))
        h0, *cells = states
        slots = tuple(self._record_slots) if self.record_state_grad_norms else None
        options = self._layer_options(backend, 0, (x, *states, *weights))
        y, h_n, c_n, *_ = run_layer(
            StackFunction, options, self.mode.lower(), cut, slots, torch.cat(masks) if masks else None,
            noise, grad_scale, x, h0, cells[0] if cells else None, *weights,
        )  # fmt: skip
        return y, [h_n] if c_n is None else [h_n, c_n]

    def _forward(self, input: Tensor | PackedSequence, hx: Any, lengths: Any) -> tuple[Any, list[Tensor]]:
        name = type(self).__name__
        padded: batches.Padded | None = None
        if not isinstance(input, (Tensor, PackedSequence)):
            raise TypeError(f"{name}: input should be a tensor or a PackedSequence, got {type(input).__name__}")
        is_batched = isinstance(input, PackedSequence) or input.dim() == 3
        states = None if hx is None else self._check_states(hx, 3 if is_batched else 2)
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError("lengths is for a padded tensor; a PackedSequence has its own")
            if input.data.dim() != 2:
                raise RuntimeError(f"input must have 2 dimensions, got {input.data.dim()}")
            dtype = self._check_data(input.data)
            batch = batches.from_packed(input, None if states is None else states[0].size(1))
        else:
            if input.dim() not in (2, 3):
                got = f"{input.dim()}D tensor" if name == "RNN" else f"{input.dim()}D"
                raise ValueError(f"{name}: Expected input to be 2D or 3D, got {got} instead")
            dtype = self._check_data(input)
            if not is_batched:
                if lengths is not None:
                    raise ValueError("lengths needs a batched 3-D input, got an unbatched 2-D one")
                input = input.unsqueeze(1)
                states = None if states is None else [s.unsqueeze(1) for s in states]
            batch_first = self.batch_first and is_batched
            size, steps = (input.size(0), input.size(1)) if batch_first else (input.size(1), input.size(0))
            if steps == 0:
                raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
            if lengths is not None:
                lengths = batches.check_lengths(lengths, size, steps)
            on_host = lengths is not None and lengths.device.type == "cpu" and not torch.compiler.is_compiling()
            if on_host and bool((lengths == steps).all()):
                lengths, on_host = None, False
            if on_host:
                batch, padded = batches.from_host_lengths(input, lengths, batch_first)
            else:
                if lengths is not None:
                    lengths = lengths.to(input.device)
                batch = Batch(input.transpose(0, 1) if batch_first else input, size, lengths)

        initial = self._initial_states(states, batch, dtype)
        if dtype != batch.data.dtype:
            batch = batch._replace(data=batch.data.to(dtype))
        y, final = self._run_layers(batch, initial, backends.resolve(batch.data.device))
        final = [batch.unsort(state) for state in final]

        if isinstance(input, PackedSequence):
            return PackedSequence(y, input.batch_sizes, input.sorted_indices, input.unsorted_indices), final
        if padded is not None:
            return padded.lay_out(y), final
        if not is_batched:
            return y.squeeze(1), [state.squeeze(1) for state in final]
        return (y.transpose(0, 1) if self.batch_first else y), final

    @overload
    def forward(self, input: Tensor, hx: Any = None, *, lengths: Any = None) -> tuple[Tensor, Any]: ...
    @overload
    def forward(self, input: PackedSequence, hx: Any = None) -> tuple[PackedSequence, Any]: ...
    def forward(self, input: Any, hx: Any = None, *, lengths: Any = None) -> tuple[Any, Any]:
        """Run the whole sequence.

        Args:
            input: (T, B, input_size), (B, T, input_size) with ``batch_first``, unbatched (T, input_size), or a PackedSequence.
            hx: initial states, (num_layers * num_directions, B, ·), for LSTM a tuple (h_0, c_0); zeros by default.
            lengths: (B,) integers, tensor or list, CPU or GPU, any order, zeros allowed: how many steps of each padded sample
                exist. Nothing of the padding reaches an output or a gradient. Lengths on the CPU are checked by value, and
                the time of the whole forward and backward follows them.

        Returns:
            (output, h_n) or (output, (h_n, c_n)) as torch.nn; output is zero past a length, the states are those after each
            sample's true last step (the initial state for length 0).

        Raises:
            ValueError, TypeError, RuntimeError: in torch.nn's words; lengths beyond the sequence are named one by one.
        """
        if not torch.compiler.is_dynamo_compiling() and lengths is None and not torch.is_grad_enabled():
            result = inference.run(self, input, hx)
            if result is not None:
                return result
        output, final = self._forward(input, hx, lengths)
        return output, (final[0] if len(final) == 1 else tuple(final))


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}: " + ", ".join(type(v).__name__ for v in value)
    return type(value).__name__
