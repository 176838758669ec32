"""cria run on a host with GPUs: what it adds, for which commands, and what a user said before wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from cria.engine.launch import gpus, launcher

SERVE = ["vllm", "serve", "m"]


def added(command: list[str]) -> set[str]:
    return {str(each) for each in gpus.gpu_settings(command) if not each.kept}


@pytest.mark.parametrize(
    ("words", "ranks"),
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
def test_ranks_are_counted_as_vllm_reads_them(words: list[str], ranks: int) -> None:
    assert gpus.rank_count([*SERVE, *words]) == ranks


def test_one_rank_needs_no_more_than_sleep() -> None:
    assert added(SERVE) == {"--enable-sleep-mode"}


def test_several_ranks_share_no_gpu_memory() -> None:
    assert added([*SERVE, "-tp", "2"]) >= {
        "NCCL_P2P_DISABLE=1", "NCCL_NVLS_ENABLE=0", "--disable-custom-all-reduce"
    }  # fmt: skip
    assert gpus.missing_settings([*SERVE, "-tp", "2"], {}) != ()
    variables = {s.name: s.value for s in gpus.gpu_settings([*SERVE, "-tp", "2"]) if not s.option}
    said = [*SERVE, "-tp", "2", "--disable-custom-all-reduce"]
    assert gpus.missing_settings(said, variables) == ()


@pytest.mark.parametrize("said", ["--enable-sleep-mode", "--no-enable-sleep-mode"])
def test_an_option_that_was_given_is_not_given_again(said: str) -> None:
    assert added([*SERVE, said]) == set()


@pytest.mark.parametrize(
    "command", [["python", "train.py"], ["bash", "-c", "vllm serve m"], ["vllm", "bench"]]
)
def test_what_is_no_vllm_gets_no_words_added(command: list[str]) -> None:
    assert added(command) == set()


@pytest.mark.parametrize(
    ("environment", "there"),
    [({}, True), ({"CUDA_VISIBLE_DEVICES": "1"}, True), ({"CUDA_VISIBLE_DEVICES": ""}, False),
     ({"CUDA_VISIBLE_DEVICES": "-1"}, False), ({"CUDA_VISIBLE_DEVICES": "GPU-1c"}, True)],
)  # fmt: skip
def test_gpus_may_be_hidden(environment: dict[str, str], there: bool, tmp_path: Path) -> None:
    control = tmp_path / "nvidiactl"
    assert not gpus.has_gpus(environment, control)
    control.touch()

    assert gpus.has_gpus(environment, control) is there


def test_added_words_reach_the_command_and_variables_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setattr(gpus, "has_gpus", lambda _environment: True)
    log = tmp_path / "log"
    program = "import os, sys; print(sys.argv[4:], os.environ.get('NCCL_P2P_DISABLE'))"

    command = [sys.executable, "-c", program, "vllm", "serve", "m", "-tp", "2"]
    launcher.launch(command, log).process.wait(timeout=30)

    words = "['-tp', '2', '--enable-sleep-mode', '--disable-custom-all-reduce'] 1"
    assert log.read_text().strip() == words
