"""Where the engine will live: its namespaces, its view of the images, the files it holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cria.restore.work import Restore


def choose_where_it_lives(work: Restore) -> None:
    """Among the host's processes where its PIDs and paths are free there, else in namespaces of its own."""
    from cria.doctor import preflight
    from cria.errors import PathTaken, PidTaken
    from cria.events import Warned
    from cria.namespaces.place import Host, OwnNamespaces
    from cria.namespaces.view import make_sure_of, prepared

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

    from cria.pages import stored
    from cria.ports import private_view, rewrite

    work.view = Path(tempfile.mkdtemp(prefix="cria-restore-"))
    images, criu = work.checkpoint.images, work.client.criu
    private_view(images, work.view)
    stored.unpack_rest(images, work.view)
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
    from cria.namespaces.place import Host
    from cria.storage import carry, layout
    from cria.storage.turns import Turn

    assert work.place is not None
    carried = work.checkpoint.manifest.carried
    work.placed = carried
    if isinstance(work.place, Host):
        work.placed = carry.missing(carried)
        if carry.has_links(work.placed):
            work.turn = Turn(work.wait_seconds)
    return carry.put_back(work.placed, work.checkpoint.path / layout.CARRIED, work.place.root)


def take_its_files_away(work: Restore) -> None:
    from cria.namespaces.place import Host
    from cria.storage import carry

    if isinstance(work.place, Host):
        carry.remove(work.placed)
    if work.turn is not None and work.turn.lasts:
        carry.remove_links(work.placed)
        work.turn.end()
