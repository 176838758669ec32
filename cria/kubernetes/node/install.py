"""Install CRIU's action script on a node, and name it in the CRIU configuration of the node's container runtime."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from cria.engine.control import client
from cria.errors import NodeUnsuitable
from cria.kubernetes.node import files as node_files
from cria.kubernetes.node.files import FileChange
from cria.model.manifest import Inflight

RUNC_CONF = Path("/etc/criu/runc.conf")
CRUN_CONF = Path("/etc/criu/crun.conf")  # where it does not exist, crun reads runc's
BEGIN = "# begin cria: put here by `cria kubernetes node install`"
END = "# end cria: what follows wins where it says otherwise"
OPTIONS = ("tcp-established", "skip-in-flight", "link-remap", "file-locks", "ghost-limit 512M")
PROGRAM_DIRECTORIES = (
    "usr/sbin",
    "usr/local/sbin",
    "usr/bin",
    "usr/local/bin",
    "sbin",
    "bin",
)
SCRIPT = Path(__file__).with_name("criu_action.py")
# What the script loads: the name beside it on a node, and the file in cria. An older installation has fewer.
MODULES = {
    "criu_control.py": Path(client.__file__),
    "criu_engines.py": SCRIPT.with_name("criu_engines.py"),
    "criu_shared_memory.py": SCRIPT.with_name("criu_shared_memory.py"),
}

OnFailure = Literal["refuse", "pass"]
NetworkLock = Literal["iptables", "nftables", "skip"]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the action script does about an engine; it reads this from a file beside it."""

    on_failure: OnFailure = "refuse"
    inflight: Inflight = "keep"
    seconds: float = 60.0


class InstallRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What an installation has changed, for its removal: configurations, and files and directories that are new."""

    configurations: tuple[str, ...] = ()
    made: tuple[str, ...] = ()


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A node whose file system is mounted at `root`. The script and its files are in its `directory`."""

    root: Path = Path("/")
    directory: Path = Path("/opt/cria")

    @property
    def script(self) -> Path:
        return self.directory / "criu-action"

    @property
    def settings(self) -> Path:
        return self.directory / "criu-action.json"

    @property
    def record(self) -> Path:
        return self.directory / "installed.json"

    @property
    def modules(self) -> dict[Path, str]:
        """The content of each module that the script loads, by its path on the node."""
        return {self.directory / name: source.read_text() for name, source in MODULES.items()}

    def find_program(self, name: str) -> Path | None:
        """Return the path of a program as the node sees it. A symbolic link may lead where only the node can follow."""
        paths = (Path("/", directory, name) for directory in PROGRAM_DIRECTORIES)
        return next((p for p in paths if os.path.lexists(self.root / p.relative_to("/"))), None)


class InstallPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The changes of a node's files in their order, with the directories to make before and to remove after."""

    node: Node
    changes: tuple[FileChange, ...]
    new_directories: tuple[Path, ...] = ()
    old_directories: tuple[Path, ...] = ()
    removes_script: bool = False

    def apply(self) -> None:
        """Make all changes or none. Raises NotWritable."""
        root = self.node.root
        node_files.apply(root, self.changes, self.new_directories)
        if self.removes_script:
            modules = {Path(name).stem for name in MODULES}
            node_files.remove_bytecode(root, self.node.directory, modules)
        node_files.remove_directories(root, self.old_directories)


class InstallStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is installed on a node, and which CRIU its runtime finds in the usual directories."""

    installed: bool
    script: str | None
    up_to_date: bool
    settings: Settings | None
    configurations: tuple[str, ...]
    criu: str | None


def plan_install(
    node: Node,
    settings: Settings,
    *,
    configurations: tuple[Path, ...] = (),
    network_lock: NetworkLock | None = None,
    python: Path | None = None,
) -> InstallPlan:
    """Plan the changes that install the action script or update it; none where it is up to date.

    Without `configurations` runc's is changed, and crun's where there is one. Raises NodeUnsuitable, NotWritable.
    """
    record = _read_record(node)
    configurations = configurations or _default_configurations(node)
    new_files = {path for path in configurations if node_files.read(node.root, path) is None}
    directories = {node.directory, *(path.parent for path in configurations)}
    new_directories = {
        missing
        for directory in directories
        for missing in node_files.missing_directories(node.root, directory)
    }
    record = InstallRecord(
        configurations=_add(configurations, record.configurations),
        made=_add(new_files | new_directories, record.made),
    )
    contents: dict[Path, str | None] = {
        **node.modules,
        node.script: _script(node, python),
        node.settings: _json(settings),
        node.record: _json(record),
    }
    for path in configurations:  # last: CRIU may run the script as soon as a configuration names it
        contents[path] = _with_block(node, path, network_lock)
    return InstallPlan(
        node=node,
        changes=_changes(node, contents),
        new_directories=tuple(sorted(new_directories)),
    )


def plan_removal(node: Node) -> InstallPlan:
    """Plan the changes that remove the action script and restore what was there before. Raises NotWritable."""
    record = _read_record(node)
    contents: dict[Path, str | None] = {}
    for path in _changed_configurations(node):
        rest = _without_block(node_files.read(node.root, path) or "")
        contents[path] = None if not rest and str(path) in record.made else rest
    contents |= dict.fromkeys((node.script, *node.modules, node.settings, node.record))
    existing = {
        path: content
        for path, content in contents.items()
        if node_files.read(node.root, path) is not None
    }
    return InstallPlan(
        node=node,
        changes=_changes(node, existing),
        old_directories=tuple(map(Path, record.made)),
        removes_script=True,
    )


def status(node: Node) -> InstallStatus:
    """Return what is installed. Raises NotWritable where a path has a symbolic link."""
    script = node_files.read(node.root, node.script)
    settings = node_files.read(node.root, node.settings)
    contents = {
        path: node_files.read(node.root, path) or "" for path in _changed_configurations(node)
    }
    configurations = [path for path, content in contents.items() if BEGIN in content]
    criu = node.find_program("criu")
    return InstallStatus(
        installed=bool(script and configurations),
        script=str(node.script) if script else None,
        up_to_date=_is_up_to_date(node, script),
        settings=msgspec.json.decode(settings, type=Settings) if settings else None,
        configurations=tuple(map(str, configurations)),
        criu=str(criu) if criu else None,
    )


def diff(change: FileChange, node: Node) -> str:
    """Return a unified diff of a change; an empty string for a file that is cria's own."""
    if change.path.parent == node.directory:
        return ""
    old, new = (text.splitlines() if text else [] for text in (change.before, change.after))
    old_name, new_name = (
        "/dev/null" if text is None else str(change.path) for text in (change.before, change.after)
    )
    lines = difflib.unified_diff(old, new, old_name, new_name, lineterm="")
    return "".join(f"{line}\n" for line in lines)


def _add(paths: Iterable[Path], recorded: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({*map(str, paths), *recorded}))


def _changes(node: Node, contents: dict[Path, str | None]) -> tuple[FileChange, ...]:
    changes = (
        FileChange(
            path=path,
            before=node_files.read(node.root, path),
            after=content,
            executable=path == node.script,
        )
        for path, content in contents.items()
    )
    return tuple(change for change in changes if change.before != change.after)


def _read_record(node: Node) -> InstallRecord:
    text = node_files.read(node.root, node.record)
    return msgspec.json.decode(text, type=InstallRecord) if text else InstallRecord()


def _json(value: Settings | InstallRecord) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


# CRIU's configuration --------------------------------------------------------------------------


def _changed_configurations(node: Node) -> tuple[Path, ...]:
    """Return the configurations that an installation has changed, else those that it would change."""
    changed = tuple(map(Path, _read_record(node).configurations))
    return changed or _default_configurations(node)


def _default_configurations(node: Node) -> tuple[Path, ...]:
    has_crun = node_files.read(node.root, CRUN_CONF) is not None
    return (RUNC_CONF, CRUN_CONF) if has_crun else (RUNC_CONF,)


def _with_block(node: Node, path: Path, network_lock: NetworkLock | None) -> str:
    """Return a configuration with cria's lines before the administrator's.

    So the administrator's win, and without cria's lines the file is as it was.
    """
    rest = _without_block(node_files.read(node.root, path) or "")
    set_options = {line.split()[0] for line in rest.splitlines() if line.strip()}
    if "tcp-close" in set_options:
        set_options.add("tcp-established")
    lines = [line for line in _options(node, network_lock) if line.split()[0] not in set_options]
    return "\n".join([BEGIN, f"action-script {node.script}", *lines, END, rest])


def _options(node: Node, network_lock: NetworkLock | None) -> list[str]:
    """Return what an engine needs and no runtime sets; docs/how-to/kubernetes-node.md says why, line by line."""
    lock = network_lock or ("iptables" if node.find_program("iptables") else "nftables")
    return [*OPTIONS, f"network-lock {lock}"]


def _without_block(text: str) -> str:
    before, begin, block = text.partition(BEGIN + "\n")
    if not begin:
        return text
    return before + block.partition(END + "\n")[2]


# The script ------------------------------------------------------------------------------------


def _is_up_to_date(node: Node, script: str | None) -> bool:
    modules = {path: node_files.read(node.root, path) for path in node.modules}
    return _body(script or "") == _body(SCRIPT.read_text()) and modules == node.modules


def _script(node: Node, python: Path | None) -> str:
    return f"#!{python or _find_python(node)} -IS\n{_body(SCRIPT.read_text())}"


def _body(script: str) -> str:
    return script.partition("\n")[2]


def _find_python(node: Node) -> Path:
    python = node.find_program("python3")
    if python is None:
        directories = ", ".join(f"{node.root / directory}" for directory in PROGRAM_DIRECTORIES)
        raise NodeUnsuitable(
            "the node has no Python to run the action script with",
            details=f"looked for python3 in {directories}",
            remedy="name one of version 3.9 or newer: --python /path/to/python3",
        )
    return python
