"""Information routers, by name.

A router stands between the image stream and the text stream, before the language model: steering attention later cannot
add information that is missing (Information Router, arXiv 2604.16264). To add one, write a class that takes the
configuration, whose forward takes `Streams` and returns `(Streams, weights [N, 2])`, and add a line here.
"""

from torch import nn

from .channel_router import ChannelRouter
from .gate_router import GateRouter
from .reliability_router import ReliabilityRouter

ROUTERS = {"none": None, "gate": GateRouter, "channel": ChannelRouter, "reliability": ReliabilityRouter}


def build_router(config) -> nn.Module | None:
    """The router that `config.router_type` names, or `None`."""
    router_class = ROUTERS[config.router_type]
    return None if router_class is None else router_class(config)
