"""User hooks: who is run when, what a failure does, and what is never run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import msgspec
import pytest
from jsonschema import Draft202012Validator

from cria.errors import HookFailed, HookUnsafe, PortTaken, UsageError
from cria.events import Event, Warned
from cria.model.hooks import HookCall, Stage
from cria.operations.hooks import Hooks, environment, failure_of
from cria.system.procfs import stat

SCHEMA = Path(__file__).parents[3] / "docs" / "reference" / "schema" / "hook.json"
Program = Callable[..., Path]


def facts(stage: Stage = "before-dump", **others: object) -> HookCall:
    known = {"operation": "dump", "checkpoint": "/c", "images": "/c/images", "pid": 7}
    return msgspec.convert(known | {"stage": stage} | others, HookCall)


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Makes a hook of a few lines of shell that works in a directory of its own."""

    def make(*lines: str, name: str = "hook") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(["#!/bin/sh", f"cd {tmp_path}", *lines]) + "\n")
        path.chmod(0o700)
        return path

    return make


def run(*hooks: object, seconds: float = 10.0, stage: Stage = "before-dump") -> None:
    Hooks(hooks, seconds=seconds).begin(facts(stage))  # type: ignore[arg-type]


def test_a_program_gets_the_facts_as_its_schema_says(program: Program, tmp_path: Path) -> None:
    run(program("cat > facts; echo $1 > stage; env > environment"))

    document = json.loads((tmp_path / "facts").read_text())
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document)
    assert (document["stage"], document["pid"]) == ("before-dump", 7)
    assert (tmp_path / "stage").read_text() == "before-dump\n"
    told = (tmp_path / "environment").read_text().splitlines()
    assert {"CRIA_STAGE=before-dump", "CRIA_PID=7", "CRTOOLS_IMAGE_DIR=/c/images"} <= set(told)
    assert os.environ["PATH"] in (tmp_path / "environment").read_text()


def test_an_action_script_of_criu_knows_the_moments_by_its_own_names() -> None:
    known = environment(facts("at-still-point", url="http://h:1"))

    assert known["CRTOOLS_SCRIPT_ACTION"] == "pre-dump"
    assert known["CRTOOLS_INIT_PID"] == "7"
    assert known["CRIA_URL"] == "http://h:1"
    assert environment(facts("after-resume"))["CRTOOLS_SCRIPT_ACTION"] == "after-resume"
    assert "CRTOOLS_INIT_PID" not in environment(facts("before-restore", pid=None))


def test_what_fails_is_named_with_what_it_printed(program: Program) -> None:
    hook = program("echo no load balancer here >&2", "exit 3")

    with pytest.raises(HookFailed) as caught:
        run(hook)

    assert str(hook) in caught.value.message
    assert "status 3 at before-dump" in caught.value.message
    assert caught.value.details == "no load balancer here"


def test_one_that_hangs_is_killed_with_all_it_started(program: Program, tmp_path: Path) -> None:
    hook = program("sleep 60 & echo $! > child", "echo waiting", "wait")
    begin = time.monotonic()

    with pytest.raises(HookFailed, match="did not end within 1 s") as caught:
        run(hook, seconds=1.0)

    assert time.monotonic() - begin < 10
    assert caught.value.details == "waiting"
    assert "--hook-seconds" in str(caught.value.remedy)
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 5
    while (now := stat(child)) is not None and now.state != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_that_leaves_a_process_behind_does_not_make_cria_wait(program: Program) -> None:
    begin = time.monotonic()

    run(program("sleep 3 &"))

    assert time.monotonic() - begin < 2


def test_one_that_is_killed_is_said_by_which_signal(program: Program) -> None:
    with pytest.raises(HookFailed, match="by SIGTERM"):
        run(program("kill $$"))


def test_a_function_that_raises_refuses_too() -> None:
    def no_thanks(_facts: HookCall) -> None:
        raise ValueError("not on Fridays")

    with pytest.raises(HookFailed, match="no_thanks") as caught:
        run(no_thanks)

    assert caught.value.details == "ValueError: not on Fridays"


def test_they_are_asked_in_order_and_told_in_reverse() -> None:
    log: list[tuple[str, str]] = []
    first = lambda facts: log.append(("first", facts.stage))  # noqa: E731
    second = lambda facts: log.append(("second", facts.stage))  # noqa: E731
    hooks = Hooks([first, second])

    hooks.begin(facts("before-dump"))
    hooks.ask(facts("at-still-point"))
    hooks.tell(facts("after-dump"))

    assert [name for name, _ in log] == ["first", "second", "first", "second", "second", "first"]


def test_after_a_refusal_only_those_that_were_asked_are_told() -> None:
    log: list[str] = []

    def refuses(facts: HookCall) -> None:
        log.append(f"refuses {facts.stage}")
        if facts.stage == "before-dump":
            raise ValueError

    def never(_facts: HookCall) -> None:
        log.append("never")

    hooks = Hooks([lambda facts: log.append(f"first {facts.stage}"), refuses, never])
    with pytest.raises(HookFailed):
        hooks.begin(facts())
    hooks.tell(facts("dump-failed"))

    assert log == [
        "first before-dump",
        "refuses before-dump",
        "refuses dump-failed",
        "first dump-failed",
    ]


def test_afterwards_a_failure_is_a_warning_and_the_others_are_told_all_the_same() -> None:
    told: list[Event] = []
    log: list[str] = []

    def fails_later(facts: HookCall) -> None:
        if facts.stage == "after-dump":
            raise ValueError("late")

    hooks = Hooks([lambda facts: log.append(facts.stage), fails_later], listener=told.append)
    hooks.begin(facts())
    hooks.tell(facts("after-dump"))

    assert [type(event) for event in told] == [Warned]
    assert log == ["before-dump", "after-dump"]


def test_a_hook_that_is_not_there_or_no_program_is_refused_before_anything_runs(
    program: Program, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        Hooks([tmp_path / "none"])
    plain = program()
    plain.chmod(0o600)
    with pytest.raises(UsageError) as caught:
        Hooks([plain])
    assert "chmod +x" in str(caught.value.remedy)


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_one_that_others_may_write_is_not_run(program: Program, mode: int) -> None:
    hook = program()
    hook.chmod(mode)

    with pytest.raises(HookUnsafe) as caught:
        Hooks([hook])

    assert f"{mode:04o}" in str(caught.value.details)
    assert "chmod go-w" in str(caught.value.remedy)


def test_one_in_a_directory_that_others_may_write_is_not_run(program: Program) -> None:
    hook = program()
    hook.parent.chmod(0o777)

    with pytest.raises(HookUnsafe) as caught:
        Hooks([hook])

    assert str(hook.parent) in str(caught.value.details)


def test_a_link_to_one_that_others_may_write_is_not_run(program: Program, tmp_path: Path) -> None:
    real = program(name="real")
    real.chmod(0o777)
    (tmp_path / "link").symlink_to(real)

    with pytest.raises(HookUnsafe):
        Hooks([tmp_path / "link"])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: run `make test` as root")
def test_root_runs_no_hook_of_another_user(program: Program) -> None:
    hook = program()
    os.chown(hook, 65534, -1)

    with pytest.raises(HookUnsafe, match="others can change") as caught:
        Hooks([hook])

    assert "belongs to uid 65534" in str(caught.value.details)


def test_one_that_became_unsafe_since_is_not_run_either(program: Program, tmp_path: Path) -> None:
    hooks = Hooks([hook := program("touch ran")])
    hook.chmod(0o777)

    with pytest.raises(HookUnsafe):
        hooks.begin(facts())
    assert not (tmp_path / "ran").exists()


def remember(facts: HookCall) -> None:
    """What an installed package would offer."""
    REMEMBERED.append(facts.stage)


REMEMBERED: list[str] = []


def test_a_name_without_a_slash_is_a_hook_of_an_installed_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offered = EntryPoint(name="remember", value=f"{__name__}:remember", group="cria.hooks")
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda group: EntryPoints([offered]).select(group=group)
    )

    run("remember")
    with pytest.raises(UsageError) as caught:
        run("forget")

    assert REMEMBERED == ["before-dump"]
    assert "installed packages offer: remember" in str(caught.value.details)
    assert "--hook ./forget" in str(caught.value.remedy)


def test_a_failure_is_told_by_its_code() -> None:
    assert failure_of(PortTaken("port 8000 is taken")).code == "port-taken"
    assert failure_of(KeyboardInterrupt()).code == "KeyboardInterrupt"


def test_a_safe_program_behind_a_link_that_others_can_exchange_is_not_run(
    program: Program, tmp_path: Path
) -> None:
    """Whoever may write the link's directory may point it elsewhere between the check and the exec."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "link").symlink_to(program())

    with pytest.raises(HookUnsafe) as caught:
        Hooks([shared / "link"])

    assert f"{shared} has the mode 0777" in str(caught.value.details)


def test_a_link_to_a_directory_on_the_way_is_checked_as_well(
    program: Program, tmp_path: Path
) -> None:
    hook = program()
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "way").symlink_to(hook.parent, target_is_directory=True)

    with pytest.raises(HookUnsafe):
        Hooks([shared / "way" / hook.name])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: run `make test` as root")
def test_a_link_of_another_user_in_a_sticky_directory_is_not_followed(
    program: Program, tmp_path: Path
) -> None:
    sticky = tmp_path / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    link = sticky / "link"
    link.symlink_to(program())
    os.chown(link, 65534, -1, follow_symlinks=False)

    with pytest.raises(HookUnsafe, match="others can change") as caught:
        Hooks([link])

    assert f"{link} belongs to uid 65534" in str(caught.value.details)


def test_a_link_that_leads_to_itself_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")

    with pytest.raises(UsageError, match="does not exist"):
        Hooks([tmp_path / "loop"])
