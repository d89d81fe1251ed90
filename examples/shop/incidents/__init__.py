"""The incidents that the demo plays, by their names in the order of playing."""

from __future__ import annotations

from examples.shop.incident import Incident
from examples.shop.incidents.cut_off import CutOff
from examples.shop.incidents.failing_grpc import FailingGrpc
from examples.shop.incidents.flood import Flood
from examples.shop.incidents.growing import GrowingService
from examples.shop.incidents.held import HeldSessions
from examples.shop.incidents.leak import Leak
from examples.shop.incidents.lost_cart import LostCart
from examples.shop.incidents.overload import Overload
from examples.shop.incidents.slow_api import SlowApi

INCIDENTS: dict[str, Incident] = {
    incident.key: incident
    for incident in (
        SlowApi(),
        Leak(),
        HeldSessions(),
        LostCart(),
        GrowingService(),
        CutOff(),
        FailingGrpc(),
        Flood(),
        Overload(),
    )
}
