from typing import Any

from torch import Tensor

def initialize(tensor: type, parameter: type, /) -> bool: ...
def run_network(
    cell: int,
    layers: int,
    directions: int,
    x: Tensor,
    weights: list[Tensor | None],
    h0: Tensor | None,
    c0: Tensor | None,
    y: Tensor,
    h_n: Tensor,
    c_n: Tensor | None,
    /,
) -> bool: ...
def layer_forward(*arguments: Any) -> bool: ...
def layer_backward(*arguments: Any) -> bool: ...
def dropout_factors_(*arguments: Any) -> bool: ...
def times_given() -> int: ...
