"""Make a node's container runtime bring engines to a still point: CRIU's action script and configuration."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from cria.errors import NodeUnsuitable
from cria.kubernetes.node import files as node_files
from cria.kubernetes.node.files import FileChange
from cria.model.manifest import Inflight

RUNC = Path("/etc/criu/runc.conf")
CRUN = Path("/etc/criu/crun.conf")  # crun reads runc's where it does not find its own
BEGIN = "# begin cria: put here by `cria kubernetes node install`"
END = "# end cria: what follows wins where it says otherwise"
OPTIONS = ("tcp-established", "skip-in-flight", "link-remap", "file-locks", "ghost-limit 512M")
SCRIPT = Path(__file__).with_name("criu_action.py")
BESIDE = Path(__file__).with_name("criu_shared_memory.py")  # the script imports it
PROGRAMS = ("usr/sbin", "usr/local/sbin", "usr/bin", "usr/local/bin", "sbin", "bin")

OnFailure = Literal["refuse", "pass"]
NetworkLock = Literal["iptables", "nftables", "skip"]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the action script does about an engine: it reads this from a file beside it."""

    on_failure: OnFailure = "refuse"
    inflight: Inflight = "keep"
    seconds: float = 60.0


class InstallRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What was there before, for the removal: `made` are files and directories that were not."""

    configurations: tuple[str, ...] = ()
    made: tuple[str, ...] = ()


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A node whose file system is at `root`; the script and what belongs to it are in its `directory`."""

    root: Path = Path("/")
    directory: Path = Path("/opt/cria")

    @property
    def script(self) -> Path:
        return self.directory / "criu-action"

    @property
    def beside(self) -> Path:
        return self.directory / BESIDE.name

    @property
    def settings(self) -> Path:
        return self.directory / "criu-action.json"

    @property
    def record(self) -> Path:
        return self.directory / "installed.json"

    def program(self, name: str) -> Path | None:
        """Where the node has a program, as the node names it. A link leads to where only the node can follow."""
        found = (Path("/", place, name) for place in PROGRAMS)
        return next((p for p in found if os.path.lexists(self.root / p.relative_to("/"))), None)


class InstallPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done on a node: `make` directories, the changes in their order, `remove` directories."""

    node: Node
    changes: tuple[FileChange, ...]
    make: tuple[Path, ...] = ()
    remove: tuple[Path, ...] = ()

    def carry_out(self) -> None:
        """All of it or nothing. Raises NotWritable."""
        node_files.apply(self.node.root, self.changes, self.make)
        node_files.remove_directories(self.node.root, self.remove)


class InstallStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is installed on a node, and which CRIU its runtime finds in the usual places."""

    installed: bool
    script: str | None
    up_to_date: bool
    settings: Settings | None
    configurations: tuple[str, ...]
    criu: str | None


def install(
    node: Node,
    settings: Settings,
    *,
    configurations: tuple[Path, ...] = (),
    network_lock: NetworkLock | None = None,
    python: Path | None = None,
) -> InstallPlan:
    """What installs the action script, or brings it up to date; none where it is already so.

    Without `configurations` it is runc's, and crun's where there is one. Raises NodeUnsuitable, NotWritable.
    """
    known = _record(node)
    wanted = configurations or _usual_configurations(node)
    made = {path for path in wanted if node_files.read(node.root, path) is None}
    directories = {node.directory, *(path.parent for path in wanted)}
    make = {
        each for path in directories for each in node_files.missing_directories(node.root, path)
    }
    record = InstallRecord(
        configurations=_named(wanted, known.configurations),
        made=_named(made | make, known.made),
    )
    files: dict[Path, str | None] = {
        node.beside: BESIDE.read_text(),
        node.script: _script(node, python),
        node.settings: _json(settings),
        node.record: _json(record),
    }
    for path in wanted:  # last: what names the script comes when the script is there
        files[path] = _with_block(node, path, network_lock)
    return InstallPlan(node=node, changes=_changes(node, files), make=tuple(sorted(make)))


def remove(node: Node) -> InstallPlan:
    """What takes the action script away, and leaves what was there before it. Raises NotWritable."""
    record = _record(node)
    files: dict[Path, str | None] = {}
    for path in _configurations(node):
        rest = _without_block(node_files.read(node.root, path) or "")
        files[path] = None if not rest and str(path) in record.made else rest
    files |= dict.fromkeys((node.script, node.beside, node.settings, node.record))
    there = {p: text for p, text in files.items() if node_files.read(node.root, p) is not None}
    made = tuple(map(Path, record.made))
    return InstallPlan(node=node, changes=_changes(node, there), remove=made)


def status(node: Node) -> InstallStatus:
    """What is there now. Raises NotWritable where links stand in the way."""
    script = node_files.read(node.root, node.script)
    settings = node_files.read(node.root, node.settings)
    texts = {path: node_files.read(node.root, path) or "" for path in _configurations(node)}
    naming = [path for path, text in texts.items() if BEGIN in text]
    criu = node.program("criu")
    return InstallStatus(
        installed=bool(script and naming),
        script=str(node.script) if script else None,
        up_to_date=_is_up_to_date(node, script),
        settings=msgspec.json.decode(settings, type=Settings) if settings else None,
        configurations=tuple(map(str, naming)),
        criu=str(criu) if criu else None,
    )


def diff(change: FileChange, node: Node) -> str:
    """A unified diff of what is not cria's alone."""
    if change.path.parent == node.directory:
        return ""
    old, new = (text.splitlines() if text else [] for text in (change.before, change.after))
    here, there = (
        "/dev/null" if text is None else str(change.path) for text in (change.before, change.after)
    )
    lines = difflib.unified_diff(old, new, here, there, lineterm="")
    return "".join(f"{line}\n" for line in lines)


def _named(paths: Iterable[Path], known: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({*map(str, paths), *known}))


def _changes(node: Node, files: dict[Path, str | None]) -> tuple[FileChange, ...]:
    changes = (
        FileChange(
            path=path,
            before=node_files.read(node.root, path),
            after=after,
            executable=path == node.script,
        )
        for path, after in files.items()
    )
    return tuple(change for change in changes if change.before != change.after)


def _record(node: Node) -> InstallRecord:
    text = node_files.read(node.root, node.record)
    return msgspec.json.decode(text, type=InstallRecord) if text else InstallRecord()


def _json(value: Settings | InstallRecord) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


# The configuration -----------------------------------------------------------------------------


def _configurations(node: Node) -> tuple[Path, ...]:
    """Those that were changed by an installation, else those that one would change."""
    changed = tuple(map(Path, _record(node).configurations))
    return changed or _usual_configurations(node)


def _usual_configurations(node: Node) -> tuple[Path, ...]:
    there = node_files.read(node.root, CRUN) is not None
    return (RUNC, CRUN) if there else (RUNC,)


def _with_block(node: Node, path: Path, network_lock: NetworkLock | None) -> str:
    """Our lines come first, so that what the administrator wrote wins, and taking them out restores it."""
    rest = _without_block(node_files.read(node.root, path) or "")
    said = {line.split()[0] for line in rest.splitlines() if line.strip()}
    if "tcp-close" in said:
        said.add("tcp-established")
    lines = [line for line in _options(node, network_lock) if line.split()[0] not in said]
    return "\n".join([BEGIN, f"action-script {node.script}", *lines, END, rest])


def _options(node: Node, network_lock: NetworkLock | None) -> list[str]:
    """What an engine needs and no runtime sets: docs/how-to/kubernetes-node.md says why, line by line."""
    lock = network_lock or ("iptables" if node.program("iptables") else "nftables")
    return [*OPTIONS, f"network-lock {lock}"]


def _without_block(text: str) -> str:
    before, begin, block = text.partition(BEGIN + "\n")
    if not begin:
        return text
    return before + block.partition(END + "\n")[2]


# The script ------------------------------------------------------------------------------------


def _is_up_to_date(node: Node, script: str | None) -> bool:
    beside = node_files.read(node.root, node.beside)
    return _body(script or "") == _body(SCRIPT.read_text()) and beside == BESIDE.read_text()


def _script(node: Node, python: Path | None) -> str:
    return f"#!{python or _python(node)} -IS\n{_body(SCRIPT.read_text())}"


def _body(script: str) -> str:
    return script.partition("\n")[2]


def _python(node: Node) -> Path:
    python = node.program("python3")
    if python is None:
        raise NodeUnsuitable(
            "the node has no Python to run the action script with",
            details=f"looked for python3 in {', '.join(f'{node.root / place}' for place in PROGRAMS)}",
            remedy="name one of version 3.9 or newer: --python /path/to/python3",
        )
    return python
