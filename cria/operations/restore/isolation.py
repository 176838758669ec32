"""Where the engine will live: its namespaces, its view of the images, the files it holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cria.model.manifest import CARRIED

if TYPE_CHECKING:
    from cria.operations.restore.state import Restore


def choose_where_it_lives(work: Restore) -> None:
    """Among the host's processes where its PIDs and paths are free there, else in namespaces of its own."""
    from cria.errors import PathTaken, PidTaken
    from cria.events import Warned
    from cria.isolation.namespaces import Host, OwnNamespaces
    from cria.isolation.view import make_sure_of, prepared
    from cria.operations.checks import preflight

    work.place = Host()
    criu, manifest = work.client.criu, work.checkpoint.manifest
    images, shares_network = work.checkpoint.images, work.isolate != "net"
    view = prepared(images, manifest, work.tag(), shares_network=shares_network, criu=criu)
    if work.isolate in ("auto", "never"):
        try:
            preflight.restore(work.checkpoint, criu)
        except (PidTaken, PathTaken) as taken:
            if work.isolate == "never":
                raise
            if work.listener is not None:
                words = f"{taken.message}: the engine gets namespaces of its own"
                work.listener(Warned(message=words))
        else:
            return
    make_sure_of(own for own, _ in view.binds)
    work.unix_names = view.abstract
    work.place = OwnNamespaces(
        copy_on_write=view.copy_on_write, binds=view.binds, network=work.isolate == "net"
    )


def leave_the_place(work: Restore) -> None:
    if work.place is not None:
        work.place.leave()


def make_a_private_view(work: Restore) -> None:
    """A directory of links to the images, with a files.img of its own for the new ports."""
    import tempfile

    from cria.memory import compressed
    from cria.network.images import private_view, rewrite

    work.view = Path(tempfile.mkdtemp(prefix="cria-restore-"))
    images, criu = work.checkpoint.images, work.client.criu
    private_view(images, work.view)
    compressed.unpack_rest(images, work.view)
    rewrite(images, work.plan, work.view, unix=work.unix_names, criu_binary=criu)
    if work.backing is not None:
        work.backing.put_into(work.view)


def remove_the_view(work: Restore) -> None:
    import shutil

    if work.view is not None:
        shutil.rmtree(work.view, ignore_errors=True)
        work.view = None


def put_its_files_back(work: Restore) -> int:
    """On the host a temporary file may be in its place still; the check before saw that it is the same."""
    from cria.checkpoint import saved_files
    from cria.criu.link_remap_lock import LinkRemapLock
    from cria.isolation.namespaces import Host

    assert work.place is not None
    carried = work.checkpoint.manifest.carried
    work.placed = carried
    if isinstance(work.place, Host):
        work.placed = saved_files.missing(carried)
        if saved_files.has_links(work.placed):
            work.link_remap_lock = LinkRemapLock(work.wait_seconds)
    return saved_files.put_back(work.placed, work.checkpoint.path / CARRIED, work.place.root)


def take_its_files_away(work: Restore) -> None:
    from cria.checkpoint import saved_files
    from cria.isolation.namespaces import Host

    if isinstance(work.place, Host):
        saved_files.remove(work.placed)
    if work.link_remap_lock is not None and work.link_remap_lock.held:
        saved_files.remove_links(work.placed)
        work.link_remap_lock.release()
