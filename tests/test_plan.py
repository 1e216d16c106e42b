"""The plan (csrc/plan.h) on devices that are not here: what is chosen, what is refused and why. No GPU is needed."""

import re

import pytest

from fastrnn import _library

_C = pytest.importorskip("fastrnn._C")


def clusters(largest: int, *parts: int) -> list[int]:
    """How many clusters of 1, 2, ... blocks fit into the parts of a chip, which have so many multiprocessors."""
    return [sum(part // size for part in parts) for size in range(1, largest + 1)]


DEVICES = {  # major, minor, multiprocessors, shared memory of a block, clusters
    "A100": (8, 0, 108, 166912, []),
    "RTX 3060": (8, 6, 28, 101376, []),
    "RTX 4090": (8, 9, 128, 101376, []),
    "H100": (9, 0, 132, 232448, clusters(16, 16, 16, 16, 16, 16, 16, 18, 18)),
    "B200": (10, 0, 148, 232448, clusters(16, 18, 18, 18, 18, 18, 18, 20, 20)),
    "RTX 5090": (12, 0, 170, 101376, clusters(8, 16, 16, 16, 16, 16, 16, 16, 16, 14, 14, 14)),
    "T4": (7, 5, 40, 65536, []),
}
CELLS = {"rnn": 0, "lstm": 2, "gru": 3}
GATES = {"rnn": 1, "lstm": 4, "gru": 3}
SCALARS = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}
CHUNKS = {
    "float32": 4,
    "float64": 2,
    "float16": 32,
    "bfloat16": 32,
    "tf32": 16,
}  # columns, as csrc/cuda/operand.cuh has them


def device(name: str, compiled_arch: int | None = None):
    return _C.DeviceLimits(*DEVICES[name], compiled_arch)


def request(cell="lstm", scalar="bfloat16", batch=16, hidden=512, steps=100, state=None, **options):
    return _C.PlanRequest(
        cell=CELLS[cell], scalar=SCALARS[scalar], steps=steps, batch=batch, hidden_size=hidden,
        state_size=state or hidden, **options,
    )  # fmt: skip


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("scalar", SCALARS)
@pytest.mark.parametrize("cell", CELLS)
def test_every_plan_covers_the_layer_and_fits_the_device(name, scalar, cell):
    major, _, multiprocessors, shared, resident = DEVICES[name]
    for hidden in (1, 7, 50, 64, 128, 200, 256, 300, 512, 650, 768, 1024, 1150, 2048, 4096):
        for batch in (1, 3, 8, 10, 33, 128, 1000):
            for backward in (False, True):
                for tf32 in {False, scalar == "float32"}:
                    plans = _C.all_plans(
                        request(
                            cell,
                            scalar,
                            batch,
                            hidden,
                            directions=2,
                            backward=backward,
                            allows_tf32=tf32,
                            all_plans=True,
                        ),
                        device(name),
                    )
                    assert plans
                    for plan in plans:
                        if plan["team"] == "matmul":
                            continue
                        assert major >= 8
                        check_covers(plan, cell, hidden, batch, backward, CHUNKS["tf32" if tf32 else scalar])
                        assert plan["shared_bytes"] <= shared
                        if plan["team"] == "cluster":
                            assert scalar != "float64" and plan["team_size"] <= len(resident)
                        if plan["team"] == "grid":
                            assert plan["team_size"] <= multiprocessors
                            assert plan["cluster_size"] <= max(1, len(resident))
                            assert plan["cluster_size"] == 1 or (backward and scalar != "float64")
                        if plan["team"] == "block":
                            assert plan["team_size"] == 1


def check_covers(plan, cell, hidden, batch, backward, chunk):
    clusters = plan["team_size"] // plan["cluster_size"]
    two_level = plan["team"] == "grid" and plan["cluster_size"] > 1
    if not two_level:
        assert plan["unit_warps"] * plan["splits"] == 8
        assert plan["cluster_size"] == (plan["team_size"] if plan["team"] == "cluster" else 1)
    # every unit has a warp, and no block is without units: it would not keep up with the others
    of_warp = 16 if backward or cell != "lstm" else 16 if plan["team"] == "block" else 8
    of_block = of_warp * plan["unit_warps"]
    smallest = plan["cluster_size"] if two_level else 1  # there, a whole cluster would be without
    assert plan["team_size"] * of_block >= hidden > (plan["team_size"] - smallest) * of_block
    if two_level:
        # the blocks of a number multiply the tiles of all of them, two in a group, with all columns of their own cluster
        assert plan["team_size"] % plan["cluster_size"] == 0 and 2 <= clusters <= 16
        columns = -(-GATES[cell] * of_block * plan["cluster_size"] // chunk)
        groups = -(-clusters * plan["unit_warps"] // 2)
        if plan["splits"] > 1:
            assert groups * plan["splits"] <= 8 and plan["splits"] * plan["chunks"] >= columns
        else:
            of_warp, rest = divmod(plan["chunks"], columns)
            assert rest == 0 and 8 * of_warp >= groups > 8 * (of_warp - 1)
    elif plan["scatters"]:
        # every unit of the team is in a tile of some warp, two tiles in a group; no group is empty in all warps
        assert plan["team"] == "cluster" and backward and cell != "rnn"
        groups, rest = divmod(plan["chunks"], -(-GATES[cell] * of_block // chunk))
        assert rest == 0 and 8 * 2 * 16 * groups >= hidden > 8 * 2 * 16 * (groups - 1)
    else:
        # every column of the weights has a warp
        columns = hidden * (GATES[cell] if backward else 1)
        assert plan["splits"] * plan["chunks"] * chunk >= columns > plan["splits"] * (plan["chunks"] - 1) * chunk
    assert plan["num_teams"] * plan["samples"] >= 2 * batch
    assert 0 <= plan["shared_chunks"] <= plan["chunks"]


@pytest.mark.parametrize("name", [name for name in DEVICES if name != "T4"])
def test_blocks_that_wait_for_each_other_are_chosen_only_where_that_is_proven_or_allowed(name):
    waiting = {"cluster", "grid"}
    for hidden in (64, 512, 1024):
        safe = _C.all_plans(request(hidden=hidden), device(name))
        assert not waiting & {plan["team"] for plan in safe}
        allowed = _C.all_plans(request(hidden=hidden, all_plans=True), device(name))
        if hidden == 512:
            assert waiting & {plan["team"] for plan in allowed}


@pytest.mark.parametrize("steps", [0, 1, 10, 1000])
def test_the_fastest_over_all_steps_is_chosen(steps):
    asked = request(all_plans=True, steps=steps)
    plans = _C.all_plans(asked, device("H100"))
    times = [plan["start_us"] + steps * plan["step_us"] for plan in plans]
    assert times == sorted(times)
    assert _C.plan(asked, device("H100")) == plans[0]


def test_blocks_that_keep_weights_have_to_fetch_them_before_the_first_step():
    for backward in (False, True):
        plans = _C.all_plans(request(all_plans=True, hidden=64, backward=backward), device("H100"))
        starts = {team: [p["start_us"] for p in plans if p["team"] == team] for team in {p["team"] for p in plans}}
        assert set(starts["stepwise"] + starts["matmul"]) == {0}
        # a launch, and for a grid also counters and cooperation
        assert all(start > 2 for team in ("block", "cluster") for start in starts[team])
        assert min(starts["grid"]) > max(starts["cluster"])
        for plan in plans:
            told = f" and {plan['start_us']:.2f} us before the first"
            assert plan["text"].endswith(told) == (plan["start_us"] > 0)
    few, many = (_C.plan(request(wanted="cluster:blocks=16", hidden=hidden), device("H100")) for hidden in (256, 512))
    assert few["start_us"] < many["start_us"]


@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_of_one_step_waits_for_nobody(cell):
    for backward in (False, True):
        for hidden in (512, 1024):
            options = {"hidden": hidden, "batch": 16, "all_plans": True, "backward": backward}
            one = _C.plan(request(cell, steps=1, **options), device("H100"))
            assert one["team"] in ("stepwise", "matmul") and one["start_us"] == 0, one["text"]
            many = _C.plan(request(cell, steps=1000, **options), device("H100"))
            assert many["team"] in ("cluster", "grid"), many["text"]


@pytest.mark.parametrize(
    ("hidden", "batch", "expected"),
    [(64, 16, "block"), (256, 16, "cluster"), (512, 16, "cluster"), (1024, 32, "grid")],
)
def test_a_hopper_gets_the_team_that_holds_the_weights(hidden, batch, expected):
    for cell in CELLS:
        if cell == "rnn" and hidden > 128:
            continue  # few weights: other teams may be as fast
        plan = _C.plan(request(cell, hidden=hidden, batch=batch, all_plans=True), device("H100"))
        assert plan["team"] == expected, plan["text"]


def test_weights_that_do_not_fit_on_chip_are_left_to_a_launch_per_step():
    for name in ("A100", "H100", "RTX 4090"):
        for batch in (1, 8, 16):
            plan = _C.plan(request(hidden=4096, batch=batch, all_plans=True), device(name))
            assert plan["team"] in ("stepwise", "matmul"), plan["text"]


@pytest.mark.parametrize("scalar", SCALARS)
@pytest.mark.parametrize("name", ["A100", "H100", "RTX 4090"])
def test_large_batches_of_large_layers_are_left_to_the_product_of_torch(name, scalar):
    plan = _C.plan(request(scalar=scalar, hidden=4096, batch=4096), device(name))
    assert plan["team"] == "matmul", plan["text"]
    assert plan["text"].startswith("matmul, torch's product and kernels for the cell at every step, predicted ")


@pytest.mark.parametrize("options", [{"state": 128}, {"hidden": 40000, "backward": True}])
def test_the_product_of_torch_serves_what_no_other_plan_can_run(options):
    plan = _C.plan(request(**options), device("H100"))
    assert plan["team"] == "matmul"
    assert "products" in plan["bound"]


@pytest.mark.parametrize(
    ("options", "name", "message"),
    [
        ({"wanted": "block", "hidden": 512}, "H100", "hidden_size 512 has more units than 1 block can own"),
        ({"wanted": "cluster"}, "A100", "the device has no thread block clusters"),
        ({"wanted": "cluster", "scalar": "float64", "hidden": 64}, "H100", "float64 has no cluster kernels"),
        ({"wanted": "grid", "state": 128}, "H100", "proj_size runs with the matmul plan alone"),
        ({"wanted": "stepwise"}, "T4", "it needs compute capability 8.0 or later"),
        ({"wanted": "stepwise", "batch": 2**31 - 8}, "H100", "steps, batch or hidden_size do not fit in 32 bits"),
        (
            {"wanted": "grid:rows=3"},
            "H100",
            'plan is "grid:rows=3", with "rows=3" where "blocks", "samples" or "cluster"',
        ),
        ({"wanted": "grid:blocks"}, "H100", 'with "blocks" where "blocks", "samples" or "cluster" was expected'),
        ({"wanted": "grid:blocks=x"}, "H100", 'with "blocks=x" where'),
        ({"wanted": "grid:blocks=8,blocks=8"}, "H100", 'with "blocks=8" where'),
        ({"wanted": "grid:"}, "H100", 'with "" where'),
        ({"wanted": "fast:blocks=8"}, "H100", 'expected "block", "cluster", "grid", "stepwise" or "matmul"'),
        ({"wanted": "matmul:samples=8"}, "H100", "it has no blocks, samples or clusters to choose"),
        (
            {"wanted": "cluster:blocks=5", "hidden": 64, "backward": True},
            "H100",
            "which cannot run this in backward: there are blocks=2,samples=8,cluster=2 blocks=2,samples=16,cluster=2 blocks=4,",
        ),
        (
            {"wanted": "grid:cluster=2", "hidden": 32, "backward": True},
            "H100",
            "which cannot run this in backward: there are blocks=2,samples=8,cluster=1 blocks=2,samples=16,cluster=1",
        ),
        ({"wanted": "grid:cluster=2", "backward": True}, "A100", "cluster=1"),
        (
            {"wanted": "grid:blocks=5", "hidden": 1024},
            "H100",
            'plan is "grid:blocks=5", which cannot run this in forward: there are blocks=16,samples=8,cluster=1 ',
        ),
        ({"wanted": "fast"}, "H100", 'plan is "fast", expected "block", "cluster", "grid", "stepwise" or "matmul"'),
    ],
)
def test_a_plan_that_cannot_run_says_why(options, name, message):
    with pytest.raises(ValueError, match=".") as error:
        _C.plan(request(**options), device(name))
    assert message in str(error.value)


def test_of_many_plans_the_smallest_are_named():
    with pytest.raises(ValueError, match=".") as error:
        _C.plan(request(wanted="grid:blocks=5", hidden=1024, backward=True), device("H100"))
    named = re.findall(r"blocks=(\d+),samples=(\d+),cluster=(\d+)", str(error.value))
    found = [tuple(map(int, numbers)) for numbers in named]
    assert len(found) == 8 and found == sorted(found)
    assert re.search(r" and \d+ more$", str(error.value))


@pytest.mark.parametrize("scalar", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_cluster_exchanges_in_backward_what_is_fewer_bytes(cell, scalar):
    options = {"wanted": "cluster", "hidden": 256, "backward": True}
    plan = _C.plan(request(cell, scalar, **options), device("H100"))
    gathered = GATES[cell] * 256 * (4 if scalar == "float32" else 2) * plan["samples"]
    summed = 256 * 4 * plan["samples"]
    assert plan["scatters"] == (summed < gathered)
    assert plan["exchange_bytes"] == min(summed, gathered)
    kind = "reduce-scatter" if plan["scatters"] else "all-gather"
    assert f"{kind} of {plan['exchange_bytes'] // 1024} KB a block and step" in plan["text"]


def limits(resident: list[int]):
    return _C.DeviceLimits(9, 0, 132, 232448, resident)


def test_clusters_run_in_as_many_rounds_as_the_device_has_room_for():
    resident = clusters(16, 16, 16, 16, 16, 16, 16, 18, 18)
    of_16 = request(wanted="cluster", batch=64)  # eight slices, of one team each
    plan = _C.plan(of_16, limits(resident))
    assert plan["team_size"] == 16 and plan["num_teams"] == 8 and resident[15] == 8
    fewer = _C.plan(of_16, limits([*resident[:15], 7]))
    assert fewer["step_us"] > plan["step_us"]
    assert fewer["samples"] * fewer["num_teams"] >= 64


def test_a_size_of_which_no_cluster_fits_is_passed_over():
    largest = [
        plan["team_size"] for plan in _C.all_plans(request(wanted="cluster", hidden=256), limits(clusters(16, 66, 66)))
    ]
    portable = [
        plan["team_size"] for plan in _C.all_plans(request(wanted="cluster", hidden=256), limits(clusters(8, 66, 66)))
    ]
    assert max(largest) == 16 and max(portable) == 8


def test_more_sizes_of_clusters_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="resident_clusters has 17 sizes, expected at most 16"):
        limits([1] * 17)


@pytest.mark.parametrize("team", ["block", "grid", "stepwise", "cluster"])
def test_other_teams_and_forward_gather_the_operand(team):
    for backward in (False, True):
        plan = _C.plan(request(wanted=team, hidden=64, backward=backward), device("H100"))
        assert plan["scatters"] == (team == "cluster" and backward)


def two_level(cell="lstm", scalar="bfloat16", **options):
    return request(cell, scalar, **{"batch": 32, "hidden": 1024, "backward": True, **options})


@pytest.mark.parametrize(
    ("cell", "scalar", "options"),
    [
        ("lstm", "bfloat16", {}),
        ("gru", "bfloat16", {}),
        ("lstm", "float16", {"batch": 64}),
        ("lstm", "float32", {"allows_tf32": True}),
        ("gru", "float32", {"allows_tf32": True}),
        ("lstm", "bfloat16", {"hidden": 768, "batch": 16}),
    ],
)
def test_backward_of_large_layers_exchanges_in_two_levels(cell, scalar, options):
    plan = _C.plan(two_level(cell, scalar, all_plans=True, **options), device("H100"))
    assert plan["team"] == "grid" and plan["cluster_size"] > 1, plan["text"]
    others = _C.all_plans(two_level(cell, scalar, wanted="grid:cluster=1", **options), device("H100"))
    assert others and all(plan["step_us"] < other["step_us"] for other in others)
    assert (
        f" of {plan['team_size']} blocks in clusters of {plan['cluster_size']} for {plan['samples']} sa" in plan["text"]
    )
    assert f", two-level exchange of {-(-plan['exchange_bytes'] // 1024)} KB a block and step" in plan["text"]
    assert "cluster and grid barriers and exchange " in plan["bound"]
    forward = _C.plan(two_level(cell, scalar, all_plans=True, **{**options, "backward": False}), device("H100"))
    assert forward["cluster_size"] == 1


def test_a_two_level_exchange_is_of_the_gates_of_a_cluster_and_the_sums_of_a_row():
    for cluster in (4, 8, 16):
        plan = _C.plan(two_level("gru", wanted=f"grid:blocks=64,samples=16,cluster={cluster}"), device("H100"))
        gathered, added = 3 * cluster * 16 * 16 * 2, 1024 // cluster * 16 * 4
        assert plan["exchange_bytes"] == gathered + added


@pytest.mark.parametrize("cluster", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("samples", [8, 16])
def test_a_plan_is_forced_in_its_details(samples, cluster):
    wanted = f"grid:cluster={cluster},samples={samples}"
    plan = _C.plan(two_level("gru", hidden=512, wanted=wanted), device("H100"))
    assert (plan["team"], plan["samples"], plan["cluster_size"]) == ("grid", samples, cluster)
    # Forward has no clusters: where `cluster` is given the options are not its own.
    forward = [
        _C.plan(two_level("gru", hidden=512, backward=False, wanted=name), device("H100")) for name in (wanted, "grid")
    ]
    assert forward[0] == forward[1]


def test_blocks_of_a_team_are_forced_in_both_passes():
    for backward in (False, True):
        for blocks in (16, 32):
            plan = _C.plan(request("gru", wanted=f"grid:blocks={blocks}", backward=backward), device("H100"))
            assert plan["team_size"] == blocks


def test_a_forced_grid_is_the_best_with_or_without_clusters():
    found = _C.all_plans(two_level(wanted="grid"), device("H100"))
    assert {plan["cluster_size"] > 1 for plan in found} == {False, True}
    assert _C.plan(two_level(wanted="grid"), device("H100")) == found[0]
    assert {plan["cluster_size"] for plan in _C.all_plans(two_level(wanted="grid"), device("A100"))} == {1}


def test_two_level_teams_run_in_as_many_rounds_as_there_is_room_for_their_clusters():
    resident = clusters(16, 16, 16, 16, 16, 16, 16, 18, 18)
    wanted = two_level("gru", wanted="grid:blocks=64,samples=16,cluster=8")
    plan = _C.plan(wanted, limits(resident))
    assert plan["num_teams"] == 2 and resident[7] == 16
    fewer = _C.plan(wanted, limits([*resident[:7], 15, *resident[8:]]))
    assert fewer["step_us"] == pytest.approx(2 * plan["step_us"])
    none = _C.all_plans(two_level(wanted="grid"), limits([0] * 7 + [1]))
    assert {plan["cluster_size"] for plan in none} == {1}  # two clusters at least have to run at once


def test_huge_sizes_do_not_overflow():
    plan = _C.plan(request(batch=2**33, steps=2**33), device("H100"))
    assert plan["team"] == "matmul"
    plan = _C.plan(request(batch=2**20, hidden=64, wanted="block"), device("H100"))
    assert plan["num_teams"] * plan["samples"] >= 2**20


def test_the_text_names_the_team_and_what_bounds_it():
    plan = _C.plan(request(wanted="cluster"), device("H100"))
    assert plan["text"].startswith("cluster, 16-bit tensor cores, ")
    assert f"{plan['step_us']:.2f} us a step" in plan["text"]
    assert "cluster barrier and exchange " in plan["bound"]


@pytest.mark.parametrize(
    ("compiled_arch", "teams"),
    [
        (90, {"cluster", "grid", "stepwise", "matmul"}),
        (80, {"grid", "stepwise", "matmul"}),
        (75, {"matmul"}),
        (0, {"matmul"}),
    ],
)
def test_plans_are_those_that_the_code_holds(compiled_arch, teams):
    limits = device("H100", compiled_arch)
    assert {plan["team"] for plan in _C.all_plans(request(all_plans=True), limits)} == teams
    for team in {"cluster", "grid", "stepwise"} - teams:
        with pytest.raises(ValueError, match=r"\(TORCH_CUDA_ARCH_LIST\)"):
            _C.plan(request(wanted=team), limits)


@pytest.mark.skipif(_library.build_info() is None, reason="not built")
@pytest.mark.parametrize("wanted", ["block", "cluster", "grid:cluster=1", "grid:cluster=4"])
def test_normed_steps_cost_one_more_barrier_and_the_sum(wanted):
    options = {"wanted": wanted, "backward": True, "hidden": 64 if wanted == "block" else 512}
    plain = _C.plan(request(**options), device("H100"))
    normed = _C.plan(request(clips_norm=True, **options), device("H100"))
    sum_us = float(re.search(r"sum of the norm ([\d.]+)", normed["bound"])[1])
    assert sum_us > 0.3 and "sum of the norm" not in plain["bound"]
    barrier = {"block": 0, "cluster": 0.2, "grid:cluster=1": 0.75, "grid:cluster=4": 0.95}[wanted]
    if normed["team_size"] == plain["team_size"]:
        assert normed["step_us"] - plain["step_us"] == pytest.approx(barrier + sum_us, abs=0.01)
