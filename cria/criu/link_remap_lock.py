"""Serialize the use of `link_remap.N`, the hard links by which CRIU keeps files without a name."""

from __future__ import annotations

from pathlib import Path

from cria.system.locks import HostLock


class LinkRemapLock(HostLock):
    """A host-wide lock on the names `link_remap.N`.

    CRIU links the file in the directory where it lay, mostly /dev/shm, and N is the file's ID in the dump,
    which counts up from the start in each dump (create_link_remap in criu/files-reg.c). Two dumps or
    restores at the same time would therefore use one name for different files. CRIU removes the links by
    name after the post-dump notification where the engine runs on (delete_link_remaps), and after the
    post-restore notification (try_clean_remaps), so the lock is held until CRIU has ended: only while it
    is held does a link surely belong to its holder.
    """

    def __init__(self, wait_seconds: float, directory: Path | None = None) -> None:
        super().__init__("link-remaps", wait_seconds, directory)
