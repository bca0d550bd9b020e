"""The emulated device finds what it is there to find: one kernel with each bug (tests/emulation/planted.cpp)."""

from __future__ import annotations

import pytest
import torch
from emulation.fixtures import emulated_process  # noqa: F401

RACE = "race: threads .* (write and read|read and write)"
BUGS = {
    "write_and_read_race": RACE,
    "read_and_write_race": RACE,
    "write_and_write_race": "race: threads .* both write",
    "warp_barrier_for_a_block_race": RACE,
    "tensor_core_for_a_barrier_race": RACE,
    "threads_at_one_tensor_race": "race: threads .* write and read data without a barrier",
    "blocks_at_one_tensor_race": "race: blocks .* both write data",
    "divergent_barrier": "not reached by all threads",
    "different_barriers": "different barriers",
    "divergent_warp_barrier": "not reached by all",
    "uninitialised": "read before it is written",
    "outside_shared": r"shared memory byte \d+ of 256",
    "outside_tensor": "a store outside every tensor",
    "outside_tensor_unwatched": "AddressSanitizer: use-after-poison",
    "store_to_input": "a store to the input",
    "misaligned_copy": "a misaligned asynchronous copy",
    "misaligned_load": "misaligned",
    "misaligned_vector": "misaligned address",
    "misaligned_tile": "not aligned to 32 bytes",
    "copy_without_wait": "read before it is written",
    "unrounded_tf32": "not rounded to TF32",
}


def planted(process, bug: str) -> torch.Tensor:
    data = torch.arange(64, dtype=torch.float32)
    process.call(f"planted_{bug}", {"data": data}, set() if bug == "store_to_input" else {"data"})
    return data


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(emulated_process, bug: str) -> None:
    from emulation.device import EmulationError

    with pytest.raises(EmulationError, match=BUGS[bug]):
        planted(emulated_process, bug)


def test_a_kernel_without_a_bug_runs_also_after_an_error(emulated_process) -> None:
    for _ in range(2):
        assert torch.equal(planted(emulated_process, "none"), torch.arange(63, -1, -1, dtype=torch.float32))
