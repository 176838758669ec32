"""Ports: plan where each socket of a checkpoint goes, hold those ports, rewrite the image."""

from cria.model.socket import Occupant, PortSocket, Target
from cria.network.images import (
    private_view,
    rewrite,
    sockets_of,
    sockets_of_engine,
    sockets_of_image,
)
from cria.network.listeners import check_owned, seal
from cria.network.occupancy import occupants
from cria.network.plan import Move, PortPlan
from cria.network.planner import plan, plan_clones
from cria.network.requests import Wishes
from cria.network.reservation import Reservation, reserve, reserve_any

__all__ = [
    "Move",
    "Occupant",
    "PortPlan",
    "PortSocket",
    "Reservation",
    "Target",
    "Wishes",
    "check_owned",
    "occupants",
    "plan",
    "plan_clones",
    "private_view",
    "reserve",
    "reserve_any",
    "rewrite",
    "seal",
    "sockets_of",
    "sockets_of_engine",
    "sockets_of_image",
]
