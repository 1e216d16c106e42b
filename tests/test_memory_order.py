"""Scope and order of the instructions by which blocks hand data on: the emulator, whose memory has one order, cannot see them."""

import re
from pathlib import Path

import pytest

CUDA = Path(__file__).resolve().parent.parent / "csrc" / "cuda"
SOURCE = (CUDA / "intrinsics.cuh").read_text()

# A function of intrinsics.cuh, and what it has to contain, word for word.
INSTRUCTIONS = {
    # A grid: data of any thread of the block, behind a __syncthreads, before thread 0's release; seen after its acquire.
    "red_release_add": ["red.release.gpu.global.add.u32 [%0], %1;"],
    "load_acquire": ["ld.acquire.gpu.global.u32 %0, [%1];"],
    # Past L1, which is not coherent between multiprocessors.
    "load_l2": ["ld.global.cg.f64 %0, [%1];"],
    "cp_async": ["cp.async.cg.shared.global [%0], [%1], 16, %2;"],
    "set_flag": ["st.relaxed.gpu.global.u8 [%0], %1;"],
    # A cluster: barriers are seen initialised before a peer's first push, pushed bytes after the wait.
    "cluster_sync": ["barrier.cluster.arrive.release.aligned;", "barrier.cluster.wait.acquire.aligned;"],
    "fence_mbarrier_init": ["fence.mbarrier_init.release.cluster;"],
    "mbarrier_init": ["mbarrier.init.shared.b64 [%0], %1;"],
    "mbarrier_expect_bytes": ["mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;"],
    "mbarrier_test": ["mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;"],
    "store_async": [
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];",
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1,%2}, [%3];",
    ],
}  # fmt: skip


def bodies(source: str, function: str) -> list[str]:
    """What follows each definition of the function, up to the next one."""
    parts = re.split(r"^FASTRNN_DEVICE [\w ]+?(\w+)\(", source, flags=re.MULTILINE)
    return [body for name, body in zip(parts[1::2], parts[2::2], strict=True) if name == function]


def wrong_functions(source: str) -> list[str]:
    wrong = []
    for function, instructions in INSTRUCTIONS.items():
        texts = bodies(source, function)
        body = "\n".join(texts)
        # "memory" keeps the compiler from moving other accesses across.
        has_clobbers = bool(texts) and all('"memory"' in text and "asm volatile" in text for text in texts)
        if not has_clobbers or any(body.count(instruction) != 1 for instruction in instructions):
            wrong.append(function)
    return wrong


def test_instructions_between_blocks_have_their_scope_and_order():
    assert wrong_functions(SOURCE) == []


@pytest.mark.parametrize(
    ("text", "weaker", "function"),
    [
        ("red.release.gpu", "red.relaxed.gpu", "red_release_add"),
        ("red.release.gpu", "red.release.cta", "red_release_add"),
        ("ld.acquire.gpu", "ld.relaxed.gpu", "load_acquire"),
        ("ld.global.cg", "ld.global.ca", "load_l2"),
        ("cp.async.cg", "cp.async.ca", "cp_async"),
        ("arrive.release", "arrive.relaxed", "cluster_sync"),
        ("init.release.cluster", "init.release.cta", "fence_mbarrier_init"),
        ("parity.acquire.cluster", "parity.relaxed.cluster", "mbarrier_test"),
        ("parity.acquire.cluster", "parity.acquire.cta", "mbarrier_test"),
        ('::"l"(counter), "r"(value) : "memory");', '::"l"(counter), "r"(value));', "red_release_add"),
    ],
)
def test_a_weaker_instruction_is_found(text, weaker, function):
    assert SOURCE.count(text) == 1
    assert wrong_functions(SOURCE.replace(text, weaker)) == [function]


def test_no_other_instruction_orders_memory():
    ordered = re.findall(r"[a-z_.:]*\b(?:acquire|release|acq_rel|fence|mbarrier)\b[\w.:]*[^\"\n]*?;", SOURCE)
    instructions = [match for match in ordered if re.match(r"[a-z]+[.:]", match)]
    known = [text for texts in INSTRUCTIONS.values() for text in texts]
    assert instructions
    assert [text for text in instructions if not any(text in k or k in text for k in known)] == []


def test_ptx_stands_in_one_file():
    others = [path for path in CUDA.rglob("*.cu*") if path.name != "intrinsics.cuh"]
    assert others
    assert [path.name for path in others if re.search(r"\basm\b", path.read_text())] == []
