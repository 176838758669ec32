"""The public names of cria.network: plan where each socket goes, reserve ports, rewrite images."""

from cria.model.socket import Occupant, PortSocket, Target
from cria.network.images import (
    private_view,
    rewrite,
    sockets_of,
    sockets_of_engine,
    sockets_of_image,
)
from cria.network.listeners import clear_port_reuse, verify_listeners
from cria.network.occupancy import occupants
from cria.network.plan import Move, PortPlan
from cria.network.planner import plan, plan_clones
from cria.network.requests import PortRequests
from cria.network.reservation import Reservation, reserve, reserve_any

# Their names in cria 0.1.
Wishes, check_owned, seal = PortRequests, verify_listeners, clear_port_reuse

__all__ = [
    "Move",
    "Occupant",
    "PortPlan",
    "PortRequests",
    "PortSocket",
    "Reservation",
    "Target",
    "Wishes",
    "check_owned",
    "clear_port_reuse",
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
    "verify_listeners",
]
