"""cria run adds to the command of an engine what its GPUs need, unless the user gave it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cria.engine.launch import gpus, launcher

SERVE = ["vllm", "serve", "m"]


def added(command: list[str]) -> set[str]:
    return {str(setting) for setting in gpus.gpu_settings(command) if not setting.kept}


@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        ([], 1),
        (["-tp", "2"], 2),
        (["--tensor-parallel-size=4"], 4),
        (["--tensor_parallel_size", "4", "-pp", "2"], 8),
        (["--data-parallel-size", "2"], 2),
        (["--port", "8000"], 1),
        (["-tp"], 1),
    ],
)
def test_ranks_are_counted_from_the_options_of_the_command(options: list[str], ranks: int) -> None:
    assert gpus.rank_count([*SERVE, *options]) == ranks


def test_one_rank_needs_sleep_mode_only() -> None:
    assert added(SERVE) == {"--enable-sleep-mode"}


def test_several_ranks_share_no_gpu_memory() -> None:
    assert added([*SERVE, "-tp", "2"]) >= {
        "NCCL_P2P_DISABLE=1", "NCCL_NVLS_ENABLE=0", "--disable-custom-all-reduce"
    }  # fmt: skip
    assert gpus.missing_settings([*SERVE, "-tp", "2"], {}) != ()
    variables = {s.name: s.value for s in gpus.gpu_settings([*SERVE, "-tp", "2"]) if not s.option}
    command = [*SERVE, "-tp", "2", "--disable-custom-all-reduce"]
    assert gpus.missing_settings(command, variables) == ()


@pytest.mark.parametrize("option", ["--enable-sleep-mode", "--no-enable-sleep-mode"])
def test_an_option_that_the_user_gave_is_not_added(option: str) -> None:
    assert added([*SERVE, option]) == set()


@pytest.mark.parametrize(
    "command", [["python", "train.py"], ["bash", "-c", "vllm serve m"], ["vllm", "bench"]]
)
def test_no_option_is_added_to_another_program(command: list[str]) -> None:
    assert added(command) == set()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, True), ({"CUDA_VISIBLE_DEVICES": "1"}, True), ({"CUDA_VISIBLE_DEVICES": ""}, False),
     ({"CUDA_VISIBLE_DEVICES": "-1"}, False), ({"CUDA_VISIBLE_DEVICES": "GPU-1c"}, True)],
)  # fmt: skip
def test_gpus_that_the_environment_hides_are_not_there(
    environment: dict[str, str], expected: bool, tmp_path: Path
) -> None:
    control = tmp_path / "nvidiactl"
    assert not gpus.has_gpus(environment, control)
    control.touch()

    assert gpus.has_gpus(environment, control) is expected


def test_options_are_added_to_the_command_and_variables_to_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "has_gpus", lambda _environment: True)
    log = tmp_path / "log"
    program = "import os, sys; print(sys.argv[4:], os.environ.get('NCCL_P2P_DISABLE'))"

    command = [sys.executable, "-c", program, "vllm", "serve", "m", "-tp", "2"]
    launcher.launch(command, log).process.wait(timeout=30)

    printed = "['-tp', '2', '--enable-sleep-mode', '--disable-custom-all-reduce'] 1"
    assert log.read_text().strip() == printed
