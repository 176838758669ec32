"""CRIU's RPC messages, as far as cria uses them, typed. Source: images/rpc.proto of CRIU."""

from __future__ import annotations

from typing import Protocol

from cria.criu.messages import Message, MessageClass


class CriuOptions(Message, Protocol):
    """criu_opts. The pycriu of an older CRIU lacks some fields: ask Client.has_option first."""

    images_dir_fd: int
    images_dir: str
    pid: int
    log_file: str
    log_level: int
    notify_scripts: bool
    leave_running: bool
    shell_job: bool
    ext_unix_sk: bool
    tcp_established: bool
    tcp_skip_in_flight: bool
    file_locks: bool
    link_remap: bool
    ghost_limit: int
    network_lock: int
    lazy_pages: bool
    image_io_mode: int


class CriuRequest(Message, Protocol):
    """criu_req."""

    type: int
    opts: CriuOptions
    notify_success: bool


class Notification(Protocol):
    """criu_notify: CRIU has come to the stage `script` and waits there."""

    script: str
    pid: int


class CriuResponse(Message, Protocol):
    """criu_resp: a notification where its type is NOTIFY, else the last word about a request."""

    type: int
    success: bool
    notify: Notification
    cr_errno: int
    cr_errmsg: str


class RequestTypes(Protocol):
    """The enum criu_req_type."""

    def Name(self, number: int, /) -> str: ...  # noqa: N802 - protobuf's name


class Rpc(Protocol):
    """pycriu's rpc_pb2."""

    criu_opts: MessageClass[CriuOptions]
    criu_req: MessageClass[CriuRequest]
    criu_resp: MessageClass[CriuResponse]
    criu_req_type: RequestTypes
    DUMP: int
    RESTORE: int
    NOTIFY: int
