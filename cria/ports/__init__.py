"""Ports: plan where each socket of a checkpoint goes, hold those ports, rewrite the image."""

from cria.ports.free import reserve_any
from cria.ports.model import Occupant, PortSocket, Target
from cria.ports.moves import Move, PortPlan
from cria.ports.occupancy import occupants
from cria.ports.owned import check_owned, seal
from cria.ports.plan import plan, plan_clones
from cria.ports.reserve import Reservation, reserve
from cria.ports.rewrite import private_view, rewrite
from cria.ports.sources import sockets_of, sockets_of_engine, sockets_of_image
from cria.ports.wishes import Wishes

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
